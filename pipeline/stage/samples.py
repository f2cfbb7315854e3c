"""What became of each row of an index in; samples.parquet, one row a sample, out."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import DamagedError
from pipeline.files import from_json
from pipeline.format.beton import PARTIAL, digest
from pipeline.format.beton_writer import Written
from pipeline.format.samples import NAME, QUARANTINED, WRITTEN
from pipeline.sources.index import SPLITS, Container, Index, Place

_WORDS = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", _WORDS),
        ("label", pa.int32()),
        ("file", _WORDS),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("status", _WORDS),
        ("reason", pa.string()),
    ]
)
_CONTAINERS = b"spectral.containers"
OUTCOME = np.dtype([("width", "<i4"), ("height", "<i4")])  # px; 0 and 0 of a quarantined image


class Rows(Protocol):
    """What has a row of OUTCOME for each of the index: a table, or several end to end."""

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Rows from `start` on."""


def write(directory: Path, index: Index, outcomes: Rows, reasons: dict[int, str]) -> Written:
    """Write the table under its partial name, row group by row group. reasons: by row."""
    partial = directory / (NAME + PARTIAL)
    containers = json.dumps([asdict(c) for c in index.summary.containers])
    schema = SCHEMA.with_metadata({_CONTAINERS: containers.encode()})
    with partial.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            start = 0
            for batch in index.batches():
                shapes = outcomes.read(start, len(batch))
                why = [reasons.get(row) for row in range(start, start + len(batch))]
                writer.write_table(_table(index, batch, shapes, why, schema))
                start += len(batch)
        file.flush()
        os.fsync(file.fileno())
    return Written(start, 0, partial.stat().st_size, digest(partial))


def _table(
    index: Index, batch: pa.RecordBatch, shapes: NDArray[Any], why: list[Any], schema: Any
) -> pa.Table:
    files = [container.path for container in index.summary.containers]
    status = np.array([reason is not None for reason in why], np.int32)
    columns = {name: batch[name] for name in ("id", "label", "member", "offset", "size")}
    columns["split"] = _coded(batch["split"].to_numpy(), SPLITS)
    columns["file"] = _coded(batch["file"].to_numpy(), files)
    for side in ("width", "height"):
        columns[side] = pa.array(np.ascontiguousarray(shapes[side]))
    columns["status"] = _coded(status, (WRITTEN, QUARANTINED))
    columns["reason"] = pa.array(why, pa.string())
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _coded(codes: NDArray[Any], words: Any) -> pa.Array:
    """Only the words that occur: 21,841 file names need not stand in every row group. Each once: of
    a dictionary that has a word twice, as of six files in one archive, the bytes differ by chance.
    """
    used, places = np.unique(codes, return_inverse=True)
    own = [words[code] for code in used.tolist()]
    distinct = list(dict.fromkeys(own))
    at = {word: place for place, word in enumerate(distinct)}
    merged = np.array([at[word] for word in own], np.int32)[places]
    return pa.DictionaryArray.from_arrays(pa.array(merged), pa.array(distinct, pa.string()))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The table; DamagedError for what Arrow finds in it, in words of ours."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except MemoryError:  # of Arrow, which is of its other errors' kind too
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(
            f"{path} is damaged, or no Parquet file: copy it again, or prepare --overwrite"
        ) from error


def quarantined(directory: Path) -> Iterator[tuple[str, str]]:
    """(id, reason) of each image that could not be used."""
    columns = ["id", "status", "reason"]
    if why := problem(directory / NAME):
        raise DamagedError(f"{directory / NAME} {why}; copy it again, or prepare --overwrite")
    with _opened(directory / NAME) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, columns).to_pylist():
                if row["status"] == QUARANTINED:
                    yield row["id"], row["reason"]


def places(directory: Path, split: str, wanted: list[int]) -> Iterator[tuple[str, Place]]:
    """(id, place) of some stored samples of a split, by ascending number within its shards."""
    with _opened(directory / NAME) as file:
        number = {container.path: i for i, container in enumerate(containers(directory))}
        seen = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            stored = pc.and_(pc.equal(table["split"], split), pc.equal(table["status"], WRITTEN))
            table = table.filter(stored)
            for sample in wanted:
                if seen <= sample < seen + len(table):
                    row = table.slice(sample - seen, 1).to_pylist()[0]
                    where = (number[row["file"]], row["member"], row["offset"], row["size"])
                    yield row["id"], Place(*where)
            seen += len(table)


def stored(path: Path) -> tuple[dict[str, dict[str, int]], dict[str, NDArray[np.int32]]]:
    """Of each split, how many samples there are by status, and the labels of those in its shards.
    DamagedError.
    """
    counts = {split: {WRITTEN: 0, QUARANTINED: 0} for split in SPLITS}
    labels: dict[str, list[NDArray[np.int32]]] = {split: [] for split in SPLITS}
    with _opened(path) as file:
        for batch in file.iter_batches(columns=["split", "label", "status"]):
            of_split, status = (batch[name].cast(pa.string()) for name in ("split", "status"))
            for split in SPLITS:
                mine = pc.equal(of_split, split)
                for word in (WRITTEN, QUARANTINED):
                    those = batch["label"].filter(pc.and_(mine, pc.equal(status, word)))
                    counts[split][word] += len(those)
                    if word == WRITTEN:
                        labels[split].append(those.to_numpy(zero_copy_only=False))
    none = np.zeros(0, np.int32)
    return counts, {split: np.concatenate([none, *found]) for split, found in labels.items()}


def containers(directory: Path) -> list[Container]:
    """The files and folders that the samples came from."""
    content = from_json(pq.read_schema(directory / NAME).metadata[_CONTAINERS])
    return [Container(**{**c, "shape": c["shape"] and tuple(c["shape"])}) for c in content]


def problem(path: Path) -> str | None:
    """What is wrong with the table's footer, or with its columns."""
    if not path.is_file():
        return "is missing"
    try:
        found = pq.read_schema(path)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError):
        return "is no Parquet file any more"
    return None if found.equals(SCHEMA) else f"has columns {found.names}, not {SCHEMA.names}"
