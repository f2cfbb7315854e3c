"""The shards of a run on the disk of its own node: copied, checked, shared, and removed again.

A copy is named by its digest. Whoever uses it holds a shared lock (`flock`, which ends with its
process) on a file beside it, whoever makes or removes it an exclusive one; the last one to go
removes both. What a killed process left is taken up by the next one that needs it, after a check.
"""

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pipeline.errors import DamagedError, describe
from pipeline.files import open_lock
from pipeline.format.beton import digest
from trainer.data.selection import Prepared

log = logging.getLogger(__name__)


@contextmanager
def staged(data: Prepared, planes: tuple[int, ...], folder: Path | None) -> Iterator[Prepared]:
    """The data with copies in `folder` of all shards of these planes; they are read from where they
    lie, with a word, where the folder has no room or cannot be written.
    """
    if folder is None:
        yield data
        return
    locks: list[tuple[int, Path]] = []
    copies: dict[str, Path] = {}
    try:
        try:
            for split in data.manifest.counts:
                for k in planes:
                    if data.manifest.written(split):
                        name = data.manifest.shard(split, k)
                        copies[name] = _copy(data, split, k, folder, locks)
        except OSError as error:
            log.warning("not staged, read from %s: %s", data.directory, describe(error))
            copies = {}
        yield replace(data, staged=copies)
    finally:
        for lock, path in locks:
            _leave(lock, path)


def _copy(data: Prepared, split: str, k: int, folder: Path, locks: list[tuple[int, Path]]) -> Path:
    """A copy that is whole, and stays as long as its lock is held."""
    source = data.shard_path(split, k)
    entry = data.manifest.files[data.manifest.shard(split, k)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"spectral-{entry['digest']}.beton"
    while True:
        lock = _locked(path, fcntl.LOCK_SH)
        locks.append((lock, path))
        if path.exists():
            if digest(path) == entry["digest"]:
                return path
            log.warning("%s, a copy of %s, was damaged: made anew", path, source)
        locks.pop()
        os.close(lock)
        lock = _locked(path, fcntl.LOCK_EX)
        try:
            if not path.exists() or digest(path) != entry["digest"]:
                _make(source, path, entry)
        except BaseException:
            _remove(path)
            raise
        finally:
            os.close(lock)


def _make(source: Path, path: Path, entry: Mapping[str, object]) -> None:
    """Appears whole, or not at all."""
    room = shutil.disk_usage(path.parent).free
    size = source.stat().st_size
    if room < size:
        raise OSError(
            errno.ENOSPC, f"{room / 1e9:.1f} GB free, {size / 1e9:.1f} GB needed", str(path.parent)
        )
    partial = path.with_suffix(".partial")
    shutil.copyfile(source, partial)
    if digest(partial) != entry["digest"]:
        raise DamagedError(f"{source} is not what was written: spectral verify {source.parents[1]}")
    partial.replace(path)


def _locked(path: Path, how: int) -> int:
    """The lock of a copy; one that was removed meanwhile is nobody's."""
    name = path.with_suffix(".lock")
    while True:
        lock = open_lock(name)
        try:
            fcntl.flock(lock, how)
            with suppress(FileNotFoundError):
                if os.fstat(lock).st_ino == name.stat().st_ino:
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _leave(lock: int, path: Path) -> None:
    """Removed by whoever is the last to use it."""
    try:
        with suppress(OSError):  # BlockingIOError: others do
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
    finally:
        os.close(lock)


def _remove(path: Path) -> None:
    """The lock goes last, and only while it is held alone."""
    for suffix in (".beton", ".partial", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)
