"""Packages of a user's own that are called as ours are: the command and its workers use ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SUB4

# as pip writes it
SCRIPT = """import sys
from spectral_shards import main
if __name__ == "__main__":
    sys.exit(main())
"""
TRAIN = ("--recipe", "digits", "--set", "epochs=1", "--set", "model_args.width=4")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with a `cli.py`, a `pipeline` and a `trainer` that must not be touched."""
    folder = tmp_path / "foreign"
    for name in ("pipeline", "trainer"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('foreign')\n")
    (folder / "cli.py").write_text("raise SystemExit('foreign')\n")
    return folder


def run(foreign: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """In the foreign folder, and with it on PYTHONPATH."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=foreign, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{foreign}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_they_would_be_taken(foreign: Path) -> None:
    """By Python's own rule: the folder is a trap."""
    for name in ("cli", "pipeline", "trainer"):
        with pytest.raises(AssertionError, match="foreign"):
            run(foreign, "-m", name)


@pytest.mark.processes
def test_the_command_and_its_workers_use_ours(
    foreign: Path, source: Path, data: Path, tmp_path: Path
) -> None:
    script = tmp_path / "spectral"
    script.write_text(SCRIPT)
    options = ("--size", 32, "--splits", 4, "--workers", 2, "--out", tmp_path / "data")
    run(foreign, script, "prepare", "toy", "--source", source, *options)

    base = ("train", "--data", data / SUB4, *TRAIN, "--runs")
    run(foreign, script, *base, tmp_path / "queue", "--shard", "0,1", "--jobs", 2)
    assert len(list((tmp_path / "queue").rglob("result.json"))) == 2


@pytest.mark.processes
@pytest.mark.chaos
def test_ranks_of_torchrun_use_ours(foreign: Path, data: Path, tmp_path: Path) -> None:
    base = ("train", "--data", data / SUB4, *TRAIN, "--runs")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    run(foreign, *torchrun, "-m", "spectral_shards", *base, tmp_path / "ranks", "--shard", 0)
    (log,) = (tmp_path / "ranks").rglob("log.jsonl")
    assert json.loads(log.read_text().splitlines()[0])["processes"] == 2
