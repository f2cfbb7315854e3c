"""What in an output directory is ours: nothing else is ever removed, or written over."""

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.errors import ConfigError, first_few
from pipeline.format import manifest
from pipeline.format.beton import PARTIAL
from pipeline.format.parts import FOLDER
from pipeline.format.samples import NAME as SAMPLES
from pipeline.sources.index import SPLITS

JOURNAL = "journal"
LOCK = ".lock"
_FILES = (manifest.NAME, SAMPLES)
_SHARD = re.compile(rf"shard_[0-9]+\.beton(\.sizes)?({re.escape(PARTIAL)})?")
_JOURNAL = re.compile(
    r"(header|state|again|outcomes|digests|scan\.arrow|index\.(arrow|json)|.*\.(points|sums)"
    rf"|(reasons|verdicts)\.jsonl)({re.escape(PARTIAL)})?",
    re.DOTALL,
)
_PARTS = re.compile(
    r"[0-9]+|(index|listing)-.*|plan\.json.*|merged\.jsonl|starts\.json|stderr\.log|slurm",
    re.DOTALL,
)
_PART = re.compile(rf"\.lock|(done\.json|starts\.json|stderr\.log)({re.escape(PARTIAL)})?")


def refuse_foreign(directory: Path) -> None:
    """ConfigError if there is anything in `directory` that no run of ours has put there."""
    if directory.is_dir() and (foreign := sorted(_foreign(directory))):
        raise ConfigError(
            f"{directory} holds what is not of this tool: {first_few(foreign)}. Move it away, or "
            "choose another --out"
        )


def _foreign(directory: Path) -> Iterator[str]:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name in (*SPLITS, JOURNAL, FOLDER):
            known = {JOURNAL: _JOURNAL, FOLDER: _PARTS}.get(path.name, _SHARD)
            yield from _others(path, known, path.name)
            if path.name == FOLDER:
                yield from _foreign_in_parts(path)
        elif path.is_dir() or path.name.removesuffix(PARTIAL) not in (*_FILES, LOCK):
            yield path.name


def _foreign_in_parts(folder: Path) -> Iterator[str]:
    """Within the folders of parts and of listings; what Slurm writes has names of its own."""
    for path in folder.iterdir():
        where = f"{folder.name}/{path.name}"
        if not path.is_dir() or path.name == "slurm":
            continue
        if not (path.name.isascii() and path.name.isdecimal()):
            yield from _others(path, _JOURNAL, where)
            continue
        for inner in path.iterdir():
            if inner.name in (*SPLITS, JOURNAL) and inner.is_dir() and not inner.is_symlink():
                known = _JOURNAL if inner.name == JOURNAL else _SHARD
                yield from _others(inner, known, f"{where}/{inner.name}")
            elif inner.is_dir() or not _PART.fullmatch(inner.name):
                yield f"{where}/{inner.name}"


def _others(folder: Path, known: re.Pattern[str], where: str) -> Iterator[str]:
    """What in a folder has no name of ours."""
    return (f"{where}/{path.name}" for path in folder.iterdir() if not known.fullmatch(path.name))


def remove_journal(directory: Path) -> None:
    """Remove what a run has written into its journal; a file of somebody else's stays."""
    folder = directory / JOURNAL
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if not _JOURNAL.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    with suppress(OSError):  # not empty
        folder.rmdir()


def remove(directory: Path) -> None:
    """Remove all that a run has written, the manifest first: without it nothing is final."""
    (directory / manifest.NAME).unlink(missing_ok=True)
    remove_journal(directory)
    shutil.rmtree(directory / FOLDER, ignore_errors=True)
    for name in (*_FILES, *(name + PARTIAL for name in _FILES)):
        (directory / name).unlink(missing_ok=True)
    for split in SPLITS:
        for path in (directory / split).glob("shard_*"):
            path.unlink()
        if (directory / split).is_dir():
            (directory / split).rmdir()
