"""The index of all images of a source, on disk: class, split and place of each.

An index of 14 million rows is never whole in memory: it is written and read as Arrow record
batches. What a source lists (`pipeline.sources.scan`) has the same rows; the index is what is made
of it (`pipeline.sources.splits`): final labels, and the split of each image.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from pipeline.choices import SPLITS as SPLITS
from pipeline.errors import DamagedError
from pipeline.files import from_json, sync_directory

ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.int8()),
        ("label", pa.int32()),
        ("file", pa.int32()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("rank", pa.int32()),
    ]
)
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True)
class Member:
    """An image in a container: its name there and, where it is bytes of a file, which ones."""

    name: str
    offset: int = 0
    size: int = 0

    @property
    def stem(self) -> str:
        """The name without folders and without its last suffix."""
        return PurePosixPath(self.name).stem

    @property
    def base(self) -> str:
        """The name without folders: whatever they were, they lead nowhere."""
        return PurePosixPath(self.name).name


@dataclass(frozen=True)
class Place:
    """Where an image lies: in which container, and what it is there (as of a `Member`)."""

    file: int
    member: str
    offset: int
    size: int


@dataclass(frozen=True)
class Container:
    """A file or folder that holds images. `path` is relative to the source ("" is itself).

    kind: a key of `pipeline.sources.reading.KINDS`, which says what a member is called. column: of
    a Parquet file. form: how an array is stored. shape: (height, width, channels) of the images of
    an array; others are image files.
    """

    path: str
    kind: str
    column: str = ""
    form: str = ""
    shape: tuple[int, int, int] | None = None


@dataclass
class Summary:
    """What is known of all rows together. `origin`: size in bytes (0 of folders) and mtime in ns
    of what was looked at, by path relative to the source; `names`: of the classes, for people.
    """

    rows: int = 0
    classes: list[str] = field(default_factory=list)
    names: list[str] | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    containers: list[Container] = field(default_factory=list)
    origin: dict[str, list[int]] = field(default_factory=dict)
    fingerprint: str = ""
    rows_digest: str = ""


class RowWriter:
    """Rows in, a file of record batches out."""

    def __init__(self, path: Path) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, ROWS, options=_OPTIONS)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add a batch of the schema ROWS."""
        self._writer.write_batch(batch)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._sink.close()


class RowReader:
    """The record batches of a file, one at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.open_file(pa.OSFile(str(path)))

    def batches(self, start: int = 0) -> Iterator[pa.RecordBatch]:
        """Batches from row `start` on."""
        for i in range(self._file.num_record_batches):
            batch = self._file.get_batch(i)
            if start < len(batch):
                yield batch.slice(start)
            start = max(0, start - len(batch))

    def spread(self, count: int) -> pa.RecordBatch:
        """About `count` rows: a few of each of some batches."""
        total = self._file.num_record_batches
        chosen = sorted({i * total // 16 for i in range(16)})
        parts = []
        for i in chosen:
            batch = self._file.get_batch(i)
            few = min(len(batch), -(-count // len(chosen)))
            parts.append(batch.take(pa.array([j * len(batch) // few for j in range(few)])))
        return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


class Index:
    """Every image, in the order in which it is read and written. On disk in `folder`."""

    def __init__(self, folder: Path, root: Path, summary: Summary) -> None:
        self.folder, self.root, self.summary = folder, root, summary

    @staticmethod
    def path(folder: Path) -> Path:
        """Where the rows lie."""
        return folder / "index.arrow"

    def batches(self, start: int = 0) -> Iterator[pa.RecordBatch]:
        """Rows from `start` on, in record batches."""
        return RowReader(self.path(self.folder)).batches(start)

    def spread(self, count: int) -> pa.RecordBatch:
        """About `count` rows from places all over the index."""
        return RowReader(self.path(self.folder)).spread(count)

    def save(self) -> None:
        """Write the summary; the rows are there already. Until then there is no index."""
        partial = self.folder / "index.json.partial"
        self.summary.rows_digest = _digest(self.path(self.folder))
        partial.write_text(json.dumps(asdict(self.summary)), encoding="utf-8")
        for path in (partial, self.path(self.folder)):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(self.folder / "index.json")
        sync_directory(self.folder)

    @classmethod
    def load(cls, folder: Path, root: Path) -> "Index | None":
        """The index in `folder`; None if its scan was interrupted."""
        try:
            content = from_json((folder / "index.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamagedError(
                f"{folder / 'index.json'} is damaged: start over with --overwrite"
            ) from error
        content["containers"] = [
            Container(**{**entry, "shape": entry["shape"] and tuple(entry["shape"])})
            for entry in content["containers"]
        ]
        if _digest(cls.path(folder)) != content["rows_digest"]:
            raise DamagedError(
                f"{cls.path(folder)} is not what was written: start over with --overwrite"
            )
        return cls(folder, root, Summary(**content))


class Fingerprint:
    """SHA-256 of what an index lists: ids, splits, labels and sizes, not places."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, batch: pa.RecordBatch, ids: list[str]) -> None:
        """Take a batch in; `ids` are those of the batch."""
        self._hash.update("\0".join(ids).encode())
        for column in ("split", "label", "size"):
            self._hash.update(np.ascontiguousarray(batch[column].to_numpy()).tobytes())

    def hexdigest(self) -> str:
        """In hexadecimal."""
        return self._hash.hexdigest()


def _digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; empty if there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> list[int]:
    """[size in bytes (0 of a folder), mtime in ns]."""
    found = path.stat()
    return [0 if path.is_dir() else found.st_size, found.st_mtime_ns]
