"""Standard output that is full, closed or read no further; memory that runs out; names that control
a terminal: one line each, no traceback.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import DamagedError, out_of_memory
from tests.conftest import ROOT, SUB4, spectral, write_class_folders
from tests.test_prepare import TOY

pytestmark = pytest.mark.processes


def in_shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `spectral` is the command."""
    command = f"spectral() {{ '{sys.executable}' -m cli \"$@\"; }}; set -o pipefail; {line}"
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command", ["datasets", "datasets --json", "recipes", "--help", "prepare -h"]
)
def test_a_full_standard_output_is_not_a_full_disk(command: str, unbuffered: str) -> None:
    done = in_shell(f"spectral {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: standard output cannot be written (No space left"), done
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["datasets", "recipes", "--help", "--version"])
def test_a_reader_that_has_gone_is_no_error_to_tell_of(command: str, unbuffered: str) -> None:
    done = in_shell(f"spectral {command} | true", PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == ""
    assert done.returncode in (0, 1)  # 0: it was written before `true` had ended


def test_work_goes_on_without_standard_error(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = " ".join(map(str, (*TOY, "--source", source, "--out", out)))
    done = in_shell(f"spectral prepare toy {options} 2> /dev/full")
    assert done.returncode == 0
    assert done.stdout.startswith("finished:")


def test_a_closed_standard_output_is_none(data: Path) -> None:
    done = in_shell(f"spectral inspect '{data / SUB4}' >&-")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("kilobytes", "command"), [(200_000, "inspect"), (400_000, "prepare")])
def test_too_little_memory_is_said_in_a_line(
    data: Path, source: Path, tmp_path: Path, kilobytes: int, command: str
) -> None:
    """Of imports, as here, of threads and of what libraries allocate, wherever it runs out."""
    options = ["inspect", data / SUB4]
    if command == "prepare":
        options = ["prepare", "toy", "--source", source, *TOY, "--out", tmp_path / "out"]
    line = f"ulimit -v {kilobytes}; spectral {' '.join(map(str, options))}"
    done = in_shell(line, OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("Error: memory ran out"), done.stderr
    assert "ulimit -v" in said


def test_damage_that_was_a_lack_of_memory_is_said_to_be_one() -> None:
    """Whatever a reader takes it for, as pyarrow's error is of a damaged file's kind too."""
    error = DamagedError("it cannot be read")
    assert out_of_memory(error) is None
    error.__cause__ = MemoryError("malloc of size 64 failed")
    assert "malloc of size 64 failed" in str(out_of_memory(error))


CONTROLS = "cl\n\x1b[31mass"
SHOWN = r"cl\n\x1b[31mass"


def test_a_data_set_whose_name_controls_a_terminal_is_refused(source: Path, tmp_path: Path) -> None:
    done = spectral("prepare", CONTROLS, "--source", source, *TOY, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert f"dataset name '{SHOWN}'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_class_whose_name_controls_a_terminal_is_refused(tmp_path: Path) -> None:
    """Before any work; also where something else is wrong with it."""
    source = write_class_folders(tmp_path / "source", {"train": 2, "val": 2})
    (source / "train" / "class_1").rename(source / "train" / CONTROLS)
    out = tmp_path / "out"
    other = spectral("prepare", "toy", "--source", source, *TOY, "--out", out)
    (source / "val" / "class_1").rename(source / "val" / CONTROLS)
    done = spectral("prepare", "toy", "--source", source, *TOY, "--out", out)
    assert (other.returncode, done.returncode) == (1, 1)
    assert f"control characters in their names: rename {SHOWN}\n" in done.stderr
    assert not list(out.rglob("*.beton*"))
    for found in (other, done):
        assert found.stderr.count("\n") == 1, found.stderr
        assert "\x1b" not in found.stderr


def test_an_image_or_a_folder_whose_name_controls_a_terminal_is_shown_escaped(
    tmp_path: Path,
) -> None:
    source = write_class_folders(tmp_path / "source", {"train": 3, "val": 1})
    (source / "train" / "class_1" / f"{CONTROLS}.jpg").write_bytes(b"no image")
    out = tmp_path / f"out{CONTROLS}"
    done = spectral("prepare", "toy", "--source", source, *TOY, "--out", out, "--report-bad")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    for command in (
        ("inspect", out / SUB4),
        ("inspect", out / SUB4, "--bad"),
        ("verify", out / SUB4),
    ):
        found = spectral(*command)
        assert found.returncode == 0
        said += found.stdout + found.stderr
    (out / SUB4 / "manifest.json").unlink()
    said += spectral("verify", out / SUB4).stderr
    assert "\x1b" not in said
    assert said.count(SHOWN) == 5
    assert "class_1/" + SHOWN in said
