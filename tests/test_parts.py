"""A preparation in parts, killed, repeated and refused: the bytes of one machine at the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, spectral_here, write_class_folders
from tests.test_hangs import gz
from tests.test_prepare import TOY, files_of

pytestmark = pytest.mark.processes


def words(source: Path, out: Path, *more: object) -> list[str]:
    return [*map(str, ("prepare", "toy", "--source", source, *TOY, "--out", out, *more))]


def part(source: Path, out: Path, which: str, *more: object) -> str:
    done = spectral_here(*words(source, out, "--part", which, "--workers", 1, *more))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images cannot be used, one of them in the last part."""
    root = write_class_folders(tmp_path_factory.mktemp("parts") / "source", {"train": 30, "val": 9})
    for name in ("train/class_0/003.jpg", "val/class_2/008.jpg"):
        (root / name).write_bytes(b"no image")
    return root


def whole(source: Path, out: Path, *more: object) -> dict[str, str]:
    done = spectral_here(*words(source, out, "--workers", 2, *more))
    assert done.returncode == 0, done.stderr
    return files_of(out)


def directory_of(out: Path) -> Path:
    (plan,) = out.glob("toy/*/parts/plan.json")
    return plan.parents[1]


def kill_in_the_middle(source: Path, out: Path, which: str) -> None:
    """SIGKILL to all its processes once it has written some images."""
    started = subprocess.Popen(
        [sys.executable, "-m", "cli", *words(source, out, "--part", which, "--workers", 1)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    folder = directory_of(out) / "parts" / which[0]
    while not list(folder.glob("train/*.partial")):
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.005)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    assert not (folder / "done.json").exists()


@pytest.mark.parametrize("codec", ["zstd", pytest.param("raw", marks=pytest.mark.chaos)])
def test_merged_parts_are_the_bytes_of_one_machine(
    source: Path, tmp_path: Path, codec: str
) -> None:
    """In whatever order they came, one killed in the middle and run again."""
    out = tmp_path / "parts"
    more = ("--codec", codec)
    assert "in 5 parts" in part(source, out, "0/5", *more)
    for k in (4, 1, 5):
        assert f"part {k} of 5, " in part(source, out, f"{k}/5", *more)
    if codec == "zstd":
        kill_in_the_middle(source, out, "2/5")
    directory = directory_of(out)
    said = spectral_here("status", "--runs", tmp_path / "none", "--data", out)
    assert said.stdout == f"{directory}: 3 of 5 parts prepared, missing --array=2-3\n", said.stderr
    early = spectral_here("merge", directory)
    assert early.returncode == 1
    assert "2 of 5 parts" in early.stderr
    assert "--array=2-3" in early.stderr
    for k in (2, 3):
        part(source, out, f"{k}/5", *more)
    assert "is finished already" in part(source, out, "2/5", *more)
    done = spectral_here("merge", directory)
    assert done.returncode == 0, done.stderr
    assert files_of(out) == whole(source, tmp_path / "whole", *more)
    assert not (directory / "parts").exists()
    assert "already finished:" in spectral_here("merge", directory).stdout
    other = spectral_here(*words(source / "train", out, "--part", "1/5", *more))
    assert other.returncode == 1
    assert "was made otherwise: source was" in other.stderr
    assert spectral_here("verify", directory).returncode == 0


@pytest.mark.chaos
def test_pages_are_filled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads move against the ends of pages, and those of whole images differ in shape."""
    source = write_class_folders(tmp_path / "source", {"train": 40, "val": 3})
    monkeypatch.setattr("pipeline.format.beton_writer.PAGE", 1 << 14)
    out = tmp_path / "parts"
    options = ("--splits", 1, "--resize", "shortest", "--size", 48)
    command = ("prepare", "other", "--source", source, *options, "--workers", 1, "--out")
    for k in (1, 2, 3):
        done = spectral_here(*command, out, "--part", f"{k}/3")
        assert done.returncode == 0, done.stderr
    (plan,) = out.glob("other/*/parts/plan.json")
    assert spectral_here("merge", plan.parents[1]).returncode == 0
    assert spectral_here(*command, tmp_path / "whole").returncode == 0
    assert files_of(out) == files_of(tmp_path / "whole")


def test_another_plan_is_refused(source: Path, tmp_path: Path) -> None:
    part(source, tmp_path, "1/5")
    directory = directory_of(tmp_path)
    for more, said in (
        (("--part", "2/4"), "parts was 5, now it is 4"),
        (("--part", "6/5"), "--part 6/5: write 3/64"),
        (("--part", "\uff13/5"), "--part \uff13/5: write 3/64"),  # a 3 of another script
        ((), "was begun in parts: go on with --part"),
    ):
        done = spectral_here(*words(source, tmp_path, *more))
        assert done.returncode == 1, more
        assert said in done.stderr
    plan = directory / "parts" / "plan.json"
    content = json.loads(plan.read_text())
    plan.write_text(json.dumps(content | {"versions": content["versions"] | {"pillow": "0.1"}}))
    done = spectral_here(*words(source, tmp_path, "--part", "2/5"))
    assert done.returncode == 1
    assert "pillow was 0.1" in done.stderr
    # what was made by the plan before counts for nothing
    assert "--array=1-5" in spectral_here("merge", directory).stderr


@pytest.mark.chaos
def test_a_damaged_part_is_named_and_the_merge_goes_on_later(source: Path, tmp_path: Path) -> None:
    for k in (1, 2):
        part(source, tmp_path, f"{k}/2")
    directory = directory_of(tmp_path)
    shard = directory / "parts" / "2" / "train" / "shard_02.beton"
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    done = spectral_here("merge", directory)
    assert done.returncode == 1
    assert f"remove the folder {shard.parents[1]}, run that part again" in done.stderr
    assert not (directory / "manifest.json").exists()
    shutil.rmtree(shard.parents[1])
    assert "--array=2" in spectral_here("merge", directory).stderr
    part(source, tmp_path, "2/2")
    made = directory / "train" / "shard_00.beton.partial"
    before = made.stat().st_mtime_ns
    assert spectral_here("merge", directory).returncode == 0
    assert (directory / "train" / "shard_00.beton").stat().st_mtime_ns == before
    assert files_of(tmp_path) == whole(source, tmp_path.parent / "whole")


@pytest.mark.chaos
def test_parts_that_start_at_once_agree_on_one_plan(source: Path, tmp_path: Path) -> None:
    """Each lists the source; whoever comes first decides."""
    several = [
        subprocess.Popen(
            [sys.executable, "-m", "cli", *words(source, tmp_path, "--part", f"{k}/2",
                                                 "--workers", 1)],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for k in (1, 2)
    ]  # fmt: skip
    for process in several:
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error
    assert spectral_here("merge", directory_of(tmp_path)).returncode == 0


def test_parts_of_one_compressed_archive_start_in_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From access points that the job that lists it has left, here one for every 16 kB."""
    (tmp_path / "source").mkdir()
    folders = write_class_folders(tmp_path / "folders", {"train": 30})
    archive = gz(folders, tmp_path / "source")
    monkeypatch.setattr("pipeline.sources.containers.gzip.SPACING", 1 << 14)
    out = tmp_path / "parts"
    for k in (0, 2, 1):
        part(archive, out, f"{k}/2")
    assert spectral_here("merge", directory_of(out)).returncode == 0
    assert files_of(out) == whole(archive, tmp_path / "whole")


def test_a_part_in_the_place_of_another_is_refused(source: Path, tmp_path: Path) -> None:
    """As a copy from node to node may leave it; else images would be lost, and others doubled."""
    for k in (1, 2, 3):
        part(source, tmp_path, f"{k}/3")
    directory = directory_of(tmp_path)
    shutil.rmtree(directory / "parts" / "2")
    shutil.copytree(directory / "parts" / "3", directory / "parts" / "2")
    done = spectral_here("merge", directory)
    assert done.returncode == 1
    wrong = f"{directory / 'parts' / '2'} holds another part (rows 78 to 117 of"
    assert wrong in done.stderr
    said = spectral_here("status", "--runs", tmp_path / "none", "--data", tmp_path)
    assert (said.returncode, said.stdout.startswith(wrong)) == (0, True), said.stderr
    assert not (directory / "manifest.json").exists()


def test_a_merge_removes_nothing_of_others(source: Path, tmp_path: Path) -> None:
    for k in (1, 2):
        part(source, tmp_path, f"{k}/2")
    directory = directory_of(tmp_path)
    for name in ("notes", "2/mine.txt", "2/train/sub/precious", "1/journal/x"):
        own = directory / "parts" / name
        own.parent.mkdir(exist_ok=True)
        own.write_text("mine")
        done = spectral_here("merge", directory)
        assert done.returncode == 1
        assert "parts/" + "/".join(name.split("/")[:3]) in done.stderr
        assert own.read_text() == "mine"
        own.unlink()
        if own.parent.name == "sub":
            own.parent.rmdir()
    assert spectral_here("merge", directory).returncode == 0
