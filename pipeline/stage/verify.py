"""A prepared directory in, what is damaged in it out."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedError
from pipeline.format import manifest
from pipeline.format.beton import BetonReader, digest
from pipeline.format.manifest import Manifest
from pipeline.format.samples import NAME as SAMPLES
from pipeline.progress import ProgressBar
from pipeline.stage import samples

_THREADS = 4  # hashing leaves Python's lock, and disks like a few readers


def verify(
    directory: Path, progress: ProgressBar, *, shard: int | None = None, quick: bool = False
) -> list[str]:
    """One line for each file that is not as it was written; an error if the manifest is not.

    shard: only what a job that trains this shard reads. quick: sizes and structure (headers,
    tables, footers), without reading the content against its digest.
    """
    found = manifest.load(directory)
    wanted = _wanted(found, shard)
    check = partial(_structure, len(found.classes)) if quick else _content
    damaged = []
    with (
        progress("verify", sum(entry["size"] for entry in wanted.values()), "bytes") as advance,
        ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0)))) as threads,
    ):
        problems = threads.map(
            lambda item: _problem(directory / item[0], item[1], check), wanted.items()
        )
        for (name, entry), problem in zip(wanted.items(), problems, strict=True):
            if problem:
                damaged.append(f"{directory / name}: {problem}")
            advance(entry["size"], f"{len(damaged)} damaged")
    return damaged


def quick_check(directory: Path, found: Manifest) -> list[str]:
    """Files that are missing or of another size, without opening them."""
    problems = []
    for name, entry in found.files.items():
        if problem := _problem(directory / name, entry, lambda path, entry: None):
            problems.append(f"{directory / name} {problem}")
    return problems


def _wanted(found: Manifest, shard: int | None) -> dict[str, dict[str, Any]]:
    if shard is None:
        return found.files
    found.check_shard(shard)
    names = {found.shard(split, shard) for split in found.counts}
    return {name: entry for name, entry in found.files.items() if name in names}


def _problem(
    path: Path, entry: dict[str, Any], check: Callable[[Path, dict[str, Any]], str | None]
) -> str | None:
    try:
        found = path.stat().st_size
        if found != entry["size"]:
            return f"has {found} bytes, {entry['size']} were written"
        return check(path, entry)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _content(path: Path, entry: dict[str, Any]) -> str | None:
    return None if digest(path) == entry["digest"] else "its content has changed (digest differs)"


def _structure(classes: int, path: Path, entry: dict[str, Any]) -> str | None:
    if path.name == SAMPLES:
        return samples.problem(path)
    try:
        with BetonReader(path) as reader:
            reader.check(classes)
    except DamagedError as error:
        return str(error)
    return None
