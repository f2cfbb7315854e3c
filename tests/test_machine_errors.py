"""Errors of the machine: disk, permissions; each names the place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_prepare import TOY, prepare

pytestmark = pytest.mark.processes


def test_errors_of_the_machine_name_the_place(source: Path) -> None:
    """/proc takes no new folders, even from root."""
    done = prepare(source, "/proc/nowhere")
    assert done.returncode == 1
    assert "Error: /proc/nowhere" in done.stderr


def test_an_image_that_the_disk_does_not_give_is_named(source: Path, tmp_path: Path) -> None:
    """Reading a process's memory at 0 is an error of the machine, without a file's name."""
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "source" / "train" / "class_1" / "mem.jpg").symlink_to("/proc/self/mem")
    done = prepare(tmp_path / "source", tmp_path / "out")
    assert done.returncode == 1
    assert "met an error at train/class_1/mem.jpg: Input/output error" in done.stderr


def test_a_folder_that_may_not_be_read_is_named(source: Path, tmp_path: Path) -> None:
    """Not a file that was looked for in it and that nobody has."""
    shutil.copytree(source, tmp_path / "source")
    folder = tmp_path / "source" / "train" / "class_0"
    folder.chmod(0)
    command = [sys.executable, "-m", "cli", "prepare", "toy", "--source", tmp_path / "source"]
    if os.geteuid() == 0:  # whom nothing is forbidden
        capabilities = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={capabilities}", "--inh-caps=-all", *command]
    done = subprocess.run(
        [*command, *map(str, TOY), "--out", tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    folder.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {folder}: permission denied"), done.stderr
