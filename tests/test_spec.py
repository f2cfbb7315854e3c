"""A run said in full: what is written, what is refused, and a worker that carries it out."""

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from tests.conftest import ROOT, SUB4, spectral_here
from trainer.data.selection import select
from trainer.jobs.shards import make_specs, with_seeds
from trainer.record.rundir import RunDir, folder
from trainer.run.carry_out import carry_out, first_weights
from trainer.run.execution import Execution, Interval
from trainer.run.spec import RunSpec

SMALL = ("batch_size=16", "model_args.width=8", "epochs=1")


def specs(data: Path, runs: Path, *settings: str, init_shard: int | None = None) -> list[RunSpec]:
    return make_specs(
        select(data / SUB4), [(0,), (1,)], "digits", (*SMALL, *settings), runs,
        name="x", init_shard=init_shard, execution=Execution(save_every=Interval(steps=7)),
    )  # fmt: skip


def silent(*_: object) -> object:
    return nullcontext(lambda *_: None)


def test_what_is_written_is_read_back_equal(data: Path, tmp_path: Path) -> None:
    plain, started = specs(data, tmp_path, "schedule.milestones=[0.5]", init_shard=0)
    group = replace(plain, planes=(0, 1, 3), init=tmp_path / "w.pth")
    for spec in (plain, started, group):
        spec.save()
        assert RunSpec.load(spec.directory / "spec.json") == spec
    assert started.after == (plain.directory,) == (started.init_run,)
    assert plain.after == ()
    assert folder(group.planes) == "shard_00+01+03"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"planes": ()}, "planes"),
        ({"planes": (1, 1)}, "name each once"),
        ({"planes": (2, 1)}, "in rising order"),
        ({"data": Path("here")}, "here: .* paths are absolute"),
        ({"init": Path("/a"), "init_run": Path("/b")}, "not from /a and /b"),
    ],
)
def test_what_cannot_be_is_refused(
    data: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(specs(data, tmp_path)[0], **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"planes": 3}', "\x00"])
def test_a_damaged_file_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{path} is no description of a run"):
        RunSpec.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        RunSpec.load(tmp_path / "none.json")


def test_a_worker_carries_out_a_file_from_any_folder(data: Path, tmp_path: Path) -> None:
    spec = specs(data, tmp_path / "runs")[1]
    spec.save()
    program = str(ROOT / "spectral_shards.py")
    command = [sys.executable, "-P", program, "worker", str(spec.directory / "spec.json")]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((spec.directory / "result.json").read_text())["epochs"] == 1
    assert RunSpec.load(spec.directory / "spec.json") == spec
    done = subprocess.run(
        [*command[:-1], "none.json"], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Error: none.json cannot be read")


def test_a_run_may_start_from_one_that_was_trained_longer(data: Path, tmp_path: Path) -> None:
    """The recipe of the first may be another; it has to have finished, on this data."""
    longer = specs(data, tmp_path, "epochs=2")[0]
    second = specs(data, tmp_path, init_shard=0)[1]
    with pytest.raises(ConfigError, match=r"--init-shard 0: .*shard_00 has not finished"):
        first_weights(second, select(data / SUB4))
    carry_out(longer, silent)  # type: ignore[arg-type]
    assert first_weights(second, select(data / SUB4)) == RunDir(longer.directory).best
    assert "1 epochs" in carry_out(second, silent)  # type: ignore[arg-type]


def test_seeds_are_runs_of_their_own() -> None:
    found = list(with_seeds(("epochs=1",), "x", 3, 2))
    assert found == [(("epochs=1", "seed=3"), "x+seed=3"), (("epochs=1", "seed=4"), "x+seed=4")]
    assert [name for _, name in with_seeds((), None, 0, 2)] == [None, None]


def test_seeds_share_one_queue_and_say_their_spread(data: Path, tmp_path: Path) -> None:
    changes = [word for setting in SMALL for word in ("--set", setting)]
    done = spectral_here(
        "train", "--data", data / SUB4, "--runs", tmp_path, "--recipe", "digits", *changes,
        "--name", "x", "--shard", "0", "--seeds", "2", "--jobs", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parent for path in tmp_path.rglob("result.json"))
    assert [run.parent.name for run in runs] == ["x+seed=0", "x+seed=1"]
    assert [RunSpec.load(run / "spec.json").recipe.seed for run in runs] == [0, 1]
    assert "shard 0 of x+seed=1: started" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("shard 0, ")
