"""Parquet files with a column of image files."""

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError
from pipeline.sources.containers import Opened
from pipeline.sources.index import Container, Place

_ROWS, _BATCH, _BUFFER = 64, 1 << 25, 1 << 20  # rows and bytes of a batch, bytes of a buffer


class ParquetReader(Opened):
    """Members are rows, numbered from 0. Reads some at once, whatever the size of a row group, best
    in their order; a null image has no bytes.
    """

    by_parent = True

    def __init__(self, path: Path, container: Container, folder: Path) -> None:
        super().__init__(path, container, folder)
        with named(path):
            self._file = _opened(path)
            found = self._file.metadata
            sizes = (found.row_group(i).num_rows for i in range(found.num_row_groups))
            self._ends = list(accumulate(sizes))  # rows up to the end of each row group
        self._group, self._first = -1, 0  # the group that is read, the row of the first of _images
        self._images: Any = pa.chunked_array([], pa.binary())
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def read(self, place: Place) -> bytes:
        """One row."""
        row = int(place.member)
        group = bisect_right(self._ends, row)
        if group == len(self._ends):
            raise SourceError(f"{self.path} has become shorter since it was indexed")
        with named(self.path):
            if group != self._group or row < self._first:
                self._start(group)
            while row >= self._first + len(self._images):
                self._first += len(self._images)
                if (batch := next(self._batches, None)) is None:
                    raise SourceError(f"{self.path} has fewer rows than it says: download it again")
                self._images = _flat(batch, self.container.column)
            return self._images[row - self._first].as_py() or b""

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _start(self, group: int) -> None:
        self._batches = _batches(self._file, group, self.container.column)
        self._group, self._first = group, self._ends[group - 1] if group else 0
        self._images = self._images.slice(0, 0)


def _batches(file: Any, group: int, column: str) -> Iterator[pa.RecordBatch]:
    """A column, so many rows at once that these are small where images are as large as usual in
    their group. (To ask for the size of one column may abort the process where that is damaged.)
    """
    found = file.metadata.row_group(group)
    fitting = int(_BATCH * found.num_rows / max(found.total_byte_size, 1))
    rows = max(1, min(_ROWS, fitting))
    batches: Iterator[pa.RecordBatch] = file.iter_batches(
        rows, [group], [column], use_threads=False
    )
    return batches


def _flat(batch: pa.RecordBatch, column: str) -> Any:
    return pa.Table.from_batches([batch]).flatten().column(column)


def _opened(path: Path) -> Any:
    """With a buffer of its own, not filled ahead, a column is read page by page; else the whole
    column of a row group lies in memory at once.
    """
    return pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)


def schema_of(path: Path) -> Any:
    """Its columns and metadata, as Arrow has them."""
    with named(path):
        return pq.ParquetFile(path).schema_arrow


def numbers(path: Path, column: str) -> Iterator[int | None]:
    """A column, row by row; of other columns nothing is read."""
    with named(path):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, [column], use_threads=False).column(0).to_pylist()


def files_column(path: Path, column: str) -> str | None:
    """How the bytes of image files are reached in a column: `image`, or `image.bytes` of a struct;
    None if there are none.
    """
    kind = schema_of(path).field(column).type
    if _is_binary(kind):
        return column
    if pa.types.is_struct(kind) and any(f.name == "bytes" and _is_binary(f.type) for f in kind):
        return f"{column}.bytes"
    return None


def is_integer(kind: Any) -> bool:
    """Whether a column of this type holds whole numbers."""
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind))


def _is_binary(kind: Any) -> bool:
    """However it is stored: polars writes views, some writers all of one length."""
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    types = pa.types
    known = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(is_one(kind) for is_one in (*known, types.is_fixed_size_binary))


def refuse_paths_alone(path: Path, column: str) -> None:
    """What a row says of paths is never followed; without bytes there is no image."""
    rows = 0
    with named(path):
        file = _opened(path)
        for group in range(file.num_row_groups):
            for batch in _batches(file, group, column):
                images = _flat(batch, column)
                rows += len(images)
                if images.null_count < len(images):
                    return
    if rows:
        raise SourceError(
            f"{path}: the column {column} is empty in all {rows:,} rows: they hold paths at most, "
            "which are not followed. Write it with the images in it (the library datasets does so "
            "with `embed_external_files=True`), or name a folder of the image files"
        )


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What Arrow says of damage, with the file's name; errors of the machine pass."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # of names in the file
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename:
                raise
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        if isinstance(error, pa.ArrowNotImplementedError):
            raise SourceError(f"{path} is Parquet of a kind that is not read: {error}") from error
        raise SourceError(
            f"{path} is damaged or not whole, or no Parquet file: download it again"
        ) from error
