"""A prepared directory in, what is damaged in it out, and what contradicts something else."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedError
from pipeline.format import manifest
from pipeline.format.beton import BetonReader, digest, image_field
from pipeline.format.manifest import Manifest
from pipeline.format.samples import NAME as SAMPLES
from pipeline.progress import ProgressBar
from pipeline.stage import samples

_Content = Callable[[Path, dict[str, Any]], str | None]
_Check = Callable[[Path], str | None]
_THREADS = 4  # hashing leaves Python's lock, and disks like a few readers


def verify(
    directory: Path, progress: ProgressBar, *, shard: int | None = None, quick: bool = False
) -> list[str]:
    """One line for each file that is not as it was written, or says something else than another; an
    error if the manifest is not, or contradicts itself.

    shard: only what a job that trains this shard reads. quick: sizes, tables and labels, without
    reading the content against its digest.
    """
    found = manifest.load(directory)
    wanted = _wanted(found, shard)
    content = _unread if quick else _content
    damaged = []
    with (
        progress("verify", sum(entry["size"] for entry in wanted.values()), "bytes") as advance,
        ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0)))) as threads,
    ):

        def problems(names: list[str], check: _Check) -> Iterator[str | None]:
            found = threads.map(
                lambda name: _problem(directory / name, wanted[name], content, check), names
            )
            for name, problem in zip(names, found, strict=True):
                if problem:
                    damaged.append(f"{directory / name}: {problem}")
                advance(wanted[name]["size"], f"{len(damaged)} damaged")
                yield problem

        labels = None  # of a table that is whole
        if SAMPLES in wanted and not any(problems([SAMPLES], partial(_table, found))):
            labels = samples.stored(directory / SAMPLES)[1]
        shards = [name for name in wanted if name != SAMPLES]
        for _ in problems(shards, partial(_beton, found, labels)):
            pass
    return damaged


def quick_check(directory: Path, found: Manifest) -> list[str]:
    """Files that are missing or of another size, without opening them."""
    problems = []
    for name, entry in found.files.items():
        if problem := _problem(directory / name, entry, _unread, _unchecked):
            problems.append(f"{directory / name} {problem}")
    return problems


def _wanted(found: Manifest, shard: int | None) -> dict[str, dict[str, Any]]:
    if shard is None:
        return found.files
    found.check_shard(shard)
    names = {found.shard(split, shard) for split in found.counts}
    return {name: entry for name, entry in found.files.items() if name in names}


def _problem(path: Path, entry: dict[str, Any], content: _Content, check: _Check) -> str | None:
    try:
        found = path.stat().st_size
        if found != entry["size"]:
            return f"has {found} bytes, {entry['size']} were written"
        return content(path, entry) or check(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except DamagedError as error:
        return str(error).removeprefix(str(path)).lstrip(": ")


def _unread(path: Path, entry: dict[str, Any]) -> None:
    """In place of `_content`."""


def _unchecked(path: Path) -> None:
    """In place of a look at what a file says."""


def _content(path: Path, entry: dict[str, Any]) -> str | None:
    return None if digest(path) == entry["digest"] else "its content has changed (digest differs)"


def _table(found: Manifest, path: Path) -> str | None:
    """samples.parquet against the manifest."""
    if problem := samples.problem(path):
        return problem
    counts, labels = samples.stored(path)
    classes = len(found.classes)
    for split, count in counts.items():
        said = found.counts[split]
        if any(said[status] != number for status, number in count.items()):
            return f"has {_words(count)} samples in {split}, {manifest.NAME} {_words(said)}"
        if not ((labels[split] >= 0) & (labels[split] < classes)).all():
            return f"has labels in {split} that none of the {classes} classes has"
    return None


def _words(count: dict[str, int]) -> str:
    return f"{count['written']} written and {count['quarantined']} quarantined"


def _beton(found: Manifest, labels: dict[str, NDArray[np.int32]] | None, path: Path) -> str | None:
    """A shard against itself, the manifest, and where it is given the labels of samples.parquet."""
    split, field = path.parent.name, image_field(found.preparation)
    with BetonReader(path) as reader:
        reader.check(len(found.classes))
        if reader.samples != found.written(split):
            return f"holds {reader.samples} samples, {manifest.NAME} says {found.written(split)}"
        kind = (reader.field.type_id, reader.field.arguments.rstrip(b"\0"))
        if kind != (field.type_id, field.arguments.rstrip(b"\0")):
            return f"holds other images than the planes that {manifest.NAME} describes"
        if labels is not None and (other := np.flatnonzero(reader.labels != labels[split])).size:
            i = int(other[0])
            return (
                f"says label {int(reader.labels[i])} of sample {i}, {SAMPLES} says "
                f"{int(labels[split][i])}; {len(other)} labels differ"
            )
    return None
