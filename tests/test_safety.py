"""What is not ours is never removed, and what was damaged is never taken for sound."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.format import beton_writer
from tests.conftest import ROOT, SUB4, spectral_here
from tests.test_prepare import TOY, children, files_of, wait_until
from tests.test_restart import Cut, _nth, rows_done, small, words

pytestmark = pytest.mark.processes


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "stray",
    ["thesis.txt", "mine/x.txt", "train/cat.jpg", "journal/notes", "val/shard_00.beton.bak"],
)
@pytest.mark.parametrize("option", [(), ("--overwrite",)])
def test_a_directory_with_anything_foreign_is_left_alone(
    data: Path, source: Path, tmp_path: Path, stray: str, option: tuple[str, ...]
) -> None:
    """Empty otherwise, or a finished one."""
    for start in ("empty", "finished"):
        folder = tmp_path / start / SUB4
        if start == "finished":
            shutil.copytree(data / SUB4, folder)
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / stray).write_text("precious")
        before = tree(folder)
        done = spectral_here(*small(source, tmp_path / start), *option)
        assert tree(folder) == before
        if start == "empty" or option:  # a finished one without --overwrite is of another source
            assert done.returncode == 1, done.stdout
            assert stray.split("/")[0] in done.stderr


def test_source_and_output_within_each_other_are_refused(source: Path, tmp_path: Path) -> None:
    """In both directions, and by links."""
    target = tmp_path / SUB4
    inner = target / "photos"
    shutil.copytree(source, inner)
    (tmp_path / "link").symlink_to(inner)
    before = tree(tmp_path)
    for place in (inner, target, tmp_path / "toy", tmp_path, tmp_path / "link"):
        done = spectral_here(*small(place, tmp_path))
        assert done.returncode == 1
        assert "within each other" in done.stderr
        assert tree(tmp_path) == before


def test_empty_paths_are_refused(source: Path, tmp_path: Path) -> None:
    for words_ in (("--source", "", "--out", tmp_path), ("--source", source, "--out", "")):
        done = spectral_here("prepare", "toy", "--splits", 4, "--size", 32, *words_)
        assert done.returncode == 2
        assert "the path is empty" in done.stderr


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """What a run leaves that is killed when all is written, and nothing is whole yet."""
    out = tmp_path_factory.mktemp("cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beton_writer.BetonWriter, "finish", _nth(beton_writer.BetonWriter.finish, 1))
        with pytest.raises(Cut):
            spectral_here(*small(source, out))
    return out


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda d: damage(d / "train" / "shard_01.beton.partial", 2110),
        lambda d: damage(d / "train" / "shard_01.beton.partial", -50),
        lambda d: damage(d / "journal" / "outcomes", 20),
        lambda d: (d / "journal" / "outcomes").unlink(),
        lambda d: damage(d / "journal" / "index.arrow", 500),
        lambda d: os.truncate(d / "journal" / "index.arrow", 100),
        lambda d: (d / "journal" / "index.arrow").unlink(),
        lambda d: (d / "journal" / "header").unlink(),
        lambda d: (d / "journal" / "state").write_text("garbage"),
        lambda d: (d / "journal" / "header").write_text("garbage"),
        lambda d: (d / "journal" / "index.json").write_text("{"),
        lambda d: (d / "val" / "shard_02.beton.partial").unlink(),
    ],
)
def test_what_a_damaged_run_left_is_not_taken_up(
    cut_off: Path, source: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """It is said, and nothing is published."""
    shutil.copytree(cut_off, tmp_path, dirs_exist_ok=True)
    harm(tmp_path / SUB4)
    done = spectral_here(*small(source, tmp_path))
    assert done.returncode == 1
    assert "--overwrite" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.beton"))


def test_overwrite_gives_what_it_should_whatever_was_left(
    cut_off: Path, data: Path, source: Path, tmp_path: Path
) -> None:
    shutil.copytree(cut_off, tmp_path, dirs_exist_ok=True)
    (tmp_path / SUB4 / "journal" / "header").write_text("garbage")
    assert spectral_here(*small(source, tmp_path), "--overwrite").returncode == 0
    assert files_of(tmp_path / SUB4) == files_of(data / SUB4)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """Enough (linked) images to catch a run at any time."""
    root = tmp_path_factory.mktemp("many")
    for copy in range(100):
        shutil.copytree(source / "train", root / f"c{copy % 5}" / str(copy), copy_function=os.link)
    return root


SIGNALS = {
    signal.SIGINT: (130, "interrupted"),
    signal.SIGTERM: (75, "stopped by SIGTERM"),
    signal.SIGUSR2: (75, "stopped by SIGUSR2"),
}


@pytest.mark.parametrize(
    ("number", "wait"), [(signal.SIGINT, 0.3), (signal.SIGTERM, 0.6), (signal.SIGUSR2, 2.5)]
)
def test_a_signal_to_all_processes_is_one_line(
    many: Path, tmp_path: Path, number: signal.Signals, wait: float
) -> None:
    signal_to_all(many, tmp_path, number, wait)


@pytest.mark.chaos
@pytest.mark.parametrize("wait", [0.3, 0.6, 0.9, 1.3, 2.5])
@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_to_all_processes_is_one_line_at_any_time(
    many: Path, tmp_path: Path, number: signal.Signals, wait: float
) -> None:
    signal_to_all(many, tmp_path, number, wait)


def signal_to_all(many: Path, tmp_path: Path, number: signal.Signals, wait: float) -> None:
    """A terminal or Slurm sends it to the whole process group, whatever the workers are doing."""
    status, message = SIGNALS[number]
    started = subprocess.Popen(
        [sys.executable, "-m", "cli", *words(many, tmp_path / "out", "sub36", 2)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: len(children(started.pid)) > 0)
    time.sleep(wait)
    assert started.poll() is None
    workers = children(started.pid)
    os.killpg(started.pid, number)
    _, error = started.communicate(timeout=30)
    assert started.returncode == status
    assert f"{message}; run the same command again" in error
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert "Traceback" not in error
    assert rows_done(tmp_path / "out") >= 0


def test_quick_finds_pointers_and_labels_that_lead_nowhere(data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data / SUB4, tmp_path / "copy"))
    path = folder / "train" / "shard_00.beton"
    content = path.read_bytes()
    for at, what in ((2110, "points to byte"), (2106 + 16 + 2, "the label of sample")):
        damaged = bytearray(content)
        damaged[at : at + 4] = b"\xff" * 4
        path.write_bytes(damaged)
        done = spectral_here("verify", folder, "--quick")
        assert done.returncode == 1
        assert what in done.stderr
    assert np.frombuffer(content, "<i8", 1, 2106 + 16)[0] == 0


def test_a_link_in_place_of_a_lock_is_named_and_left_alone(source: Path, tmp_path: Path) -> None:
    """A lock is opened to be written."""
    lock = tmp_path / SUB4 / ".lock"
    lock.parent.mkdir(parents=True)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for target in (precious, tmp_path / "nowhere", tmp_path / "no" / "where"):
        lock.symlink_to(target)
        done = spectral_here("prepare", "toy", "--source", source, *TOY, "--out", tmp_path)
        assert done.returncode == 1
        assert f"{lock}: a symbolic link, where a lock file belongs: remove it" in done.stderr
        lock.unlink()
    assert precious.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
