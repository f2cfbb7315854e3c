"""All parts of a preparation in; the directory out that one machine would have written.

Nothing is decoded: payloads are copied in runs of up to a megabyte or so, after the digest of their
file was checked. They pass through memory, since the digest of the new file is of its bytes, and
those move: no payload crosses a page. After an interruption what is whole is not made again.
"""

import shutil
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamagedError, SourceError
from pipeline.files import sync_directory
from pipeline.format import manifest, parts
from pipeline.format.beton import BetonReader, digest, image_field
from pipeline.format.beton_writer import BetonWriter, Written, publish
from pipeline.format.manifest import Manifest, shard_name
from pipeline.format.parts import Parts
from pipeline.format.samples import NAME as SAMPLES
from pipeline.preparation import Preparation
from pipeline.progress import Advance, ProgressBar
from pipeline.ranges import ranges
from pipeline.sources.index import SPLITS, Index
from pipeline.stage import samples
from pipeline.stage.journal import Journal, Table
from pipeline.stage.owned import JOURNAL, refuse_foreign
from pipeline.stage.part import load_index
from pipeline.stage.prepare import allowed_bad, locked
from pipeline.stage.samples import OUTCOME
from pipeline.stage.statistics import Result, Tally, conclude
from pipeline.stage.write import mapping

_THREADS = 4  # shards at a time; hashing and writing leave Python's lock
_ROWS = 4096  # samples that are copied at a time
_MERGED = "merged.jsonl"  # in parts/: the shards that are whole


def merge(directory: Path, max_bad: int | None, progress: ProgressBar) -> tuple[Manifest, bool]:
    """The manifest, and whether it was there already. ConfigError that names missing parts, or what
    is not of this tool: the parts are removed at the end.
    """
    if (directory / parts.FOLDER).exists():
        refuse_foreign(directory)
    if (directory / manifest.NAME).exists():
        shutil.rmtree(directory / parts.FOLDER, ignore_errors=True)  # a kill may have left some
        return manifest.load(directory), True
    shared = parts.load(directory)
    if shared is None:
        raise ConfigError(f"{directory} has no {parts.FOLDER}/{parts.PLAN}: nothing was prepared "
                          "there by --part")  # fmt: skip
    if missing := shared.missing():
        raise ConfigError(
            f"{len(missing)} of {shared.count} parts of {directory} have not finished: run them "
            f"again, --array={ranges(missing)}"
        )
    with locked(directory):
        found = _merged(shared, max_bad, progress)
        found.save(directory)
        shutil.rmtree(directory / parts.FOLDER)
    return found, False


def _merged(shared: Parts, max_bad: int | None, progress: ProgressBar) -> Manifest:
    plan = shared.plan
    prep = Preparation(**plan["preparation"])
    index = load_index(shared, Path(plan["source"]))
    made = [shared.done(part) or {} for part in range(1, shared.count + 1)]
    tally = reduce(Tally.joined, (Tally.from_json(part["tally"]) for part in made))
    if tally.bad > (allowed := allowed_bad(index.summary.rows, max_bad)):
        raise SourceError(f"{tally.bad} images cannot be used, more than --max-bad {allowed}")
    if not tally.written:
        raise SourceError("no image can be used")
    files = _shards(shared, prep, index, made, progress)
    files[SAMPLES] = _samples(shared, index, made)
    for name in files:
        publish(shared.directory / name)
    for folder in {(shared.directory / name).parent for name in files}:
        sync_directory(folder)
    return conclude(prep, index, Result(tally, files), plan["layout"], plan["versions"])


def _shards(
    shared: Parts, prep: Preparation, index: Index, made: list[dict[str, Any]],
    progress: ProgressBar,
) -> dict[str, Written]:  # fmt: skip
    """All of them, under their partial names or, from an earlier run, their final ones."""
    journal = Journal(shared.directory / parts.FOLDER / _MERGED)
    done = {row["name"]: Written(*row["written"]) for row in journal.read()}
    counts = index.summary.counts
    names = [(s, shard_name(s, k)) for s in SPLITS if counts[s] for k in range(prep.splits)]
    left = [pair for pair in names if pair[1] not in done]
    total = sum(
        part["files"][name][2] for _, name in left for part in made if name in part["files"]
    )
    with progress("merge", total, "bytes") as advance, mapping(_THREADS) as each:

        def make(pair: tuple[str, str]) -> tuple[str, Written]:
            split, name = pair
            return name, _shard(shared, prep, counts[split], name, made, advance)

        for name, written in each(make, left):
            journal.append({"name": name, "written": [*vars(written).values()]})
            done[name] = written
    journal.close()
    return {name: done[name] for _, name in names}


def _shard(
    shared: Parts, prep: Preparation, capacity: int, name: str, made: list[dict[str, Any]],
    advance: Advance,
) -> Written:  # fmt: skip
    path = shared.directory / name
    path.parent.mkdir(exist_ok=True)
    writer = BetonWriter(path, image_field(prep), capacity)
    try:
        for number, part in enumerate(made, 1):
            if name not in part["files"]:
                continue
            expected = Written(*part["files"][name])
            source = shared.folder(number) / name
            _check(source, expected)
            for piece in _copied(source):
                writer.append(*piece)
            writer.mark()
            writer.sync()
            advance(expected.size, name)
        return writer.finish()
    finally:
        writer.close()


def _check(path: Path, expected: Written) -> None:
    """DamagedError unless a part's file is what was written."""
    if not path.exists() or path.stat().st_size != expected.size or digest(path) != expected.digest:
        raise _not_its(path, path.parents[1])


def _not_its(path: Path, folder: Path) -> DamagedError:
    return DamagedError(
        f"{path} is not what its part has written: remove the folder {folder}, run that part "
        "again, then merge"
    )


Piece = tuple[memoryview, NDArray[Any], NDArray[Any], NDArray[Any]]


def _copied(path: Path) -> Iterator[Piece]:
    """What a writer is to append: payloads end to end, sizes, labels, shapes."""
    with BetonReader(path) as reader:
        for first in range(0, reader.samples, _ROWS):
            yield from reader.runs(first, min(first + _ROWS, reader.samples))


class _Outcomes:
    """Those of all parts, in the order of the index."""

    def __init__(self, shared: Parts, made: list[dict[str, Any]]) -> None:
        self._tables = [
            (shared.bounds(number)[0], _table(shared.folder(number), part))
            for number, part in enumerate(made, 1)
        ]

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Rows from `start` on."""
        found, end = [], start + count
        for first, table in self._tables:
            a, b = max(start, first), min(end, first + table.rows)
            if a < b:
                found.append(table.read(a - first, b - a))
        return np.concatenate(found)

    def close(self) -> None:
        """Let go of the files."""
        for _, table in self._tables:
            table.close()


def _table(folder: Path, part: dict[str, Any]) -> Table:
    path = folder / JOURNAL / "outcomes"
    rows, checksum = part["outcomes"]
    if not path.exists() or path.stat().st_size < rows * OUTCOME.itemsize:
        raise _not_its(path, folder)
    try:
        return Table(path, OUTCOME, rows, checksum)
    except DamagedError as error:
        raise _not_its(path, folder) from error


def _samples(shared: Parts, index: Index, made: list[dict[str, Any]]) -> Written:
    """samples.parquet, under its partial name."""
    reasons = {
        shared.bounds(number)[0] + row: reason
        for number, part in enumerate(made, 1)
        for row, reason in part["reasons"]
    }
    outcomes = _Outcomes(shared, made)
    try:
        return samples.write(shared.directory, index, outcomes, reasons)
    finally:
        outcomes.close()
