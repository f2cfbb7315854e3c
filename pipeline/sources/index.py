"""What a source says of its images in; an index on disk out: class, split and place of each.

An index of 14 million rows is never whole in memory: it is written and read as Arrow
record batches. A scan holds what the source lists, an index what is made of it
(`pipeline.sources.splits`): final labels, and the split of each image.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import DamagedError, SourceError, escaped, refuse_undecodable, some
from pipeline.files import sync_directory
from pipeline.sources.alike import refuse_look_alikes
from pipeline.sources.junk import counted

SPLITS = ("train", "calib", "val", "test")
BATCH_ROWS = 1 << 16
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
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where an image lies: fields as in the rows of an index."""

    file: int
    member: str
    offset: int
    size: int


@dataclass(frozen=True)
class Container:
    """A file or folder that holds images. `path` is relative to the source ("" is itself).

    kind: how `member`, `offset` and `size` of a row are meant. `folder`: member is a path below
    it. `bytes`: so many bytes at an offset of the file. `gzip`: the same in what the file
    inflates to. `parquet`: offset is a row group, size a row in it. `array`: offset is a row of
    pixels, `inner` the file within an archive, `form` its format, `shape` (height, width,
    channels) of a row.
    """

    path: str
    kind: str
    inner: str = ""
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


class Scan:
    """The list that a source makes of its images: `Source.scan` fills it.

    Classes are given by key (a folder's name, a wnid, a number); what label each gets is known
    when all are.
    """

    def __init__(self, folder: Path, root: Path, advance: Callable[[int, str], None]) -> None:
        self.folder, self.root, self._advance = folder, root, advance
        self.summary = Summary()
        self._ordinals: dict[str, int] = {}
        self._rows: list[list[Any]] = [[] for _ in ROWS]
        self._writer = RowWriter(folder / "scan.arrow")
        self.train_counts: list[int] = []
        self.has_val = False
        self.junk: Counter[str] = Counter()  # what was passed over, by its kind

    def container(self, path: Path, kind: str, **more: Any) -> int:
        """Number of a new container, for `file` of `add`."""
        refuse_undecodable(path, SourceError)
        relative = os.path.relpath(path, self.root) if path != self.root else ""
        self.summary.containers.append(Container(relative, kind, **more))
        if kind != "folder":
            self.saw(path)
        return len(self.summary.containers) - 1

    def saw(self, path: Path) -> None:
        """Remember size and time of a file or folder, to notice later that it has changed."""
        refuse_undecodable(path, SourceError)
        self.summary.origin[os.path.relpath(path, self.root)] = stamp(path)

    def add(
        self,
        split: str,
        key: str,
        name: str,
        file: int,
        *,
        member: str = "",
        offset: int = 0,
        size: int = 0,
        rank: int = 0,
    ) -> None:
        """One image: its class, its name within the class, and where it lies.

        Its id is `split/key/name`. rank: its place among the sorted names of its class.
        """
        ordinal = self._ordinals.setdefault(key, len(self._ordinals))
        if ordinal == len(self.train_counts):
            self.train_counts.append(0)
        self.train_counts[ordinal] += split == "train"
        self.has_val |= split == "val"
        values = (f"{split}/{key}/{name}", SPLITS.index(split), ordinal, file, member)
        for column, value in zip(self._rows, (*values, offset, size, rank), strict=True):
            column.append(value)
        if len(self._rows[0]) >= BATCH_ROWS:
            self._flush()

    def add_class(
        self, key: str, images: Sequence[tuple[str, str, int, int]], file: int, split: str = "train"
    ) -> None:
        """All images of a class, in the order in which they lie: (name, member, offset, size)."""
        rank = np.empty(len(images), np.int64)
        rank[sorted(range(len(images)), key=lambda i: images[i][0])] = np.arange(len(images))
        for (name, member, offset, size), place in zip(images, rank.tolist(), strict=True):
            self.add(split, key, name, file, member=member, offset=offset, size=size, rank=place)

    def finish(
        self, classes: Sequence[str] | None = None, names: dict[str, str] | None = None
    ) -> None:
        """All is listed. classes: keys by label, sorted keys if not said; names: by key."""
        self._flush()
        self._writer.close()
        if self.junk:
            log.warning("%s: left out, as they are no images: %s", self.root, counted(self.junk))
        known = sorted(self._ordinals) if classes is None else list(classes)
        if strange := sorted(set(self._ordinals) - set(known)):
            raise SourceError(
                f"{self.root}: images of {some(strange)}, which none of its {len(known)} classes is"
            )
        refuse_look_alikes(self.root, known)
        self.summary.classes = known
        if names is not None:
            self.summary.names = [names.get(key, key) for key in known]

    def relabel(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Labels by the provisional number that rows carry."""
        label_of = {key: label for label, key in enumerate(self.summary.classes)}
        return np.array([label_of[key] for key in self._ordinals], np.int32)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """What was listed; `label` is provisional."""
        return RowReader(self.folder / "scan.arrow").batches()

    def close(self) -> None:
        """The list is no longer needed."""
        (self.folder / "scan.arrow").unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._rows[0]:
            return
        try:
            columns = [
                pa.array(rows, kind) for rows, kind in zip(self._rows, ROWS.types, strict=True)
            ]
        except UnicodeEncodeError as error:
            rows = zip(*self._rows, strict=True)
            file = next(row for row in rows if error.object in row)[3]
            where = self.root / self.summary.containers[file].path
            raise SourceError(
                f"{where}: the name {escaped(error.object)} is not valid UTF-8: rename it"
            ) from error
        self._writer.write(pa.record_batch(columns, schema=ROWS))
        self.summary.rows += len(self._rows[0])
        self._advance(len(self._rows[0]), "")
        self._rows = [[] for _ in ROWS]


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
            content = json.loads((folder / "index.json").read_text(encoding="utf-8"))
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
