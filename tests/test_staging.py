"""Shards copied to the disk of a node: shared, checked, removed; done without where it is full."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DamagedError
from tests.conftest import SUB4, spectral_here
from tests.test_cluster import assert_same_weights, copied
from trainer.data.selection import Prepared, select
from trainer.data.staging import staged


@pytest.fixture
def prepared(data: Path) -> Prepared:
    return select(data / SUB4)


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def test_tasks_of_a_node_share_a_copy_and_the_last_removes_it(
    prepared: Prepared, tmp_path: Path
) -> None:
    with staged(prepared, (1,), tmp_path) as one:
        path = one.shard_path("train", 1)
        assert path.parent == tmp_path
        assert path.read_bytes() == prepared.shard_path("train", 1).read_bytes()
        assert one.shard_path("train", 0) == prepared.shard_path("train", 0)
        made = path.stat()
        with staged(prepared, (0, 1), tmp_path) as other:
            assert other.shard_path("train", 1).stat().st_ino == made.st_ino
            zero = other.shard_path("train", 0)
            assert zero.parent == tmp_path
        assert not zero.exists()
        assert path.exists()
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_used_and_removed(prepared: Prepared, tmp_path: Path) -> None:
    """It has a whole copy of one shard, and half of another."""
    if (child := os.fork()) == 0:
        with staged(prepared, (1,), tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = {path.name: path.stat().st_ino for path in tmp_path.glob("*.beton")}
    assert left
    half = next(tmp_path.glob("*.beton"))
    left.pop(half.name)
    half.rename(half.with_suffix(".partial"))
    os.truncate(half.with_suffix(".partial"), 100)
    with staged(prepared, (1,), tmp_path):
        for name, inode in left.items():
            assert (tmp_path / name).stat().st_ino == inode
        assert half.stat().st_size > 100
    assert names(tmp_path) == []


def test_a_damaged_copy_is_made_anew_and_a_damaged_shard_refused(
    prepared: Prepared, data: Path, tmp_path: Path
) -> None:
    entry = prepared.manifest.files["train/shard_01.beton"]
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / f"spectral-{entry['digest']}.beton").write_bytes(b"cut short")
    with staged(prepared, (1,), tmp_path / "node") as found:
        assert found.shard_path("train", 1).stat().st_size == entry["size"]
    own = select(copied(data / SUB4, tmp_path))
    shard = own.shard_path("train", 1)
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedError, match="spectral verify"), staged(own, (1,), tmp_path / "node"):
        pass
    assert names(tmp_path / "node") == []


def test_a_disk_without_room_is_done_without(
    prepared: Prepared, small_disk: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk("1m")
    (disk / "full").write_bytes(
        bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 20000)
    )
    with staged(prepared, (1,), disk) as found:
        assert found.shard_path("train", 1) == prepared.shard_path("train", 1)
    assert f"not staged, read from {prepared.directory}" in caplog.text
    assert {".partial", ".beton", ".lock"}.isdisjoint(names(disk))


def test_staged_training_is_the_same_to_the_bit(data: Path, tmp_path: Path) -> None:
    command = ("train", "--data", data / SUB4, "--shard", 1, "--recipe", "digits", "--name", "x",
               "--set", "epochs=2", "--set", "batch_size=16", "--set",
               "model_args.width=8")  # fmt: skip
    runs = []
    for name, more in (("a", ()), ("b", ("--stage", tmp_path / "node"))):
        done = spectral_here(*command, "--runs", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
        runs.append(tmp_path / name / SUB4 / "x" / "shard_01")
    assert_same_weights(*runs)
    spec = json.loads((runs[1] / "spec.json").read_text())
    assert spec["execution"]["stage"] == str(tmp_path / "node")
    assert names(tmp_path / "node") == []
