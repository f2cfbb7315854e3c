"""Payloads and labels in, a .beton file out that is whole or absent (see `pipeline.beton`)."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.beton import (
    ALLOCATION,
    FIELD,
    HEADER,
    PAGE,
    PARTIAL,
    TYPE_CUSTOM,
    TYPE_INT,
    TYPE_RGB_IMAGE,
    VERSION,
    ImageField,
)
from pipeline.errors import ConfigError

_DATA_ALIGNMENT = 64
_METADATA_BUFFER = 1 << 16


@dataclass(frozen=True)
class Written:
    """A finished file: its samples, its size in bytes and its digest."""

    samples: int
    payload_bytes: int
    size: int
    digest: str


class BetonWriter:
    """Writes one file beside its final name; `finish` syncs and renames it.

    Samples arrive in their final order. Room for `capacity` rows of metadata is kept
    behind the header; payloads follow, none across a page boundary.
    """

    def __init__(self, path: Path, field: ImageField, capacity: int) -> None:
        self.path, self.field = path, field
        self._partial = path.with_name(path.name + PARTIAL)
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._metadata_at = HEADER.itemsize + 2 * FIELD.itemsize
        self._metadata = bytearray()
        end = self._metadata_at + capacity * field.row.itemsize
        self._at = -(-end // _DATA_ALIGNMENT) * _DATA_ALIGNMENT
        self._first_page = self._at // PAGE
        self._page_digests: list[bytes] = []
        self._page = hashlib.sha256()
        self._samples = self._payload_bytes = 0
        self._allocations: list[NDArray[Any]] = []

    def append(
        self, payload: memoryview, sizes: NDArray[Any], labels: NDArray[Any], shapes: NDArray[Any]
    ) -> None:
        """Add samples: their payloads end to end, sizes (m,) in bytes, labels (m,),
        shapes (m, 2) as (height, width) in px.
        """
        pointers = self._place(sizes)
        start = 0
        for first, last in _runs(pointers, sizes):
            run = int(sizes[first : last + 1].sum())
            self._write(int(pointers[first]), payload[start : start + run])
            start += run
        rows = np.zeros(len(sizes), self.field.row)
        rows["f1"] = labels
        _fill_image(rows["f0"], self.field, pointers, sizes, shapes)
        self._add_metadata(rows.tobytes())
        if self.field.allocates:
            ids = np.arange(self._samples, self._samples + len(sizes))
            table = np.zeros(len(sizes), ALLOCATION)
            table["sample_id"], table["ptr"], table["size"] = ids, pointers, sizes
            self._allocations.append(table)
        self._samples += len(sizes)
        self._payload_bytes += int(sizes.sum())

    def finish(self) -> Written:
        """Write header and tables, sync, rename to the final name."""
        self._flush_metadata()
        table_at = self._at
        for table in self._allocations:
            self._write(self._at, memoryview(table.tobytes()))
        if self._at % PAGE:
            self._page_digests.append(self._page.digest())
        os.ftruncate(self._fd, self._at)
        self._write_all(self._header(table_at), 0)
        outer = hashlib.sha256()
        for page in range(self._first_page + 1):  # the tables: filled out of order, so read back
            if data := os.pread(self._fd, PAGE, page * PAGE):
                outer.update(hashlib.sha256(data).digest())
        for inner in self._page_digests[1:]:
            outer.update(inner)
        os.fsync(self._fd)
        self.close()
        self._partial.rename(self.path)
        return Written(self._samples, self._payload_bytes, self._at, outer.hexdigest())

    def close(self) -> None:
        """Let go of the file; before `finish`, it stays under its partial name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _header(self, table_at: int) -> bytes:
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, 2, PAGE, self._samples, table_at)
        fields = np.zeros(2, FIELD)
        image, label = self.field, (TYPE_INT, b"")
        described = ((b"image", image.type_id, image.arguments), (b"label", *label))
        for row, (name, type_id, arguments) in zip(fields, described, strict=True):
            row["type_id"] = type_id
            row["name"][: len(name)] = np.frombuffer(name, np.uint8)
            row["arguments"][: len(arguments)] = np.frombuffer(arguments, np.uint8)
        return header.tobytes() + fields.tobytes()

    def _place(self, sizes: NDArray[Any]) -> NDArray[np.int64]:
        """Where each payload goes: end to end, but never across a page boundary."""
        ends = self._at + np.cumsum(sizes, dtype=np.int64)
        if not len(sizes) or ends[-1] <= (self._at // PAGE + 1) * PAGE:
            return np.asarray(ends - sizes, dtype=np.int64)
        pointers, at = np.empty(len(sizes), np.int64), self._at
        for i, size in enumerate(sizes.tolist()):
            if size > PAGE:
                raise ConfigError(f"a sample of {size} bytes is larger than a page of {PAGE}")
            if at % PAGE + size > PAGE:
                at = -(-at // PAGE) * PAGE
            pointers[i] = at
            at += size
        return pointers

    def _write(self, at: int, data: memoryview) -> None:
        """Write at `at` ≥ the end so far; the gap reads as zeros and counts in the digest."""
        self._advance(memoryview(bytes(at - self._at)))
        self._advance(data)
        self._write_all(data, at)

    def _write_all(self, data: bytes | bytearray | memoryview, at: int) -> None:
        """Until all of it is written: short writes happen, on a disk that fills up too."""
        view = memoryview(data)
        while len(view):
            try:
                written = os.pwrite(self._fd, view, at)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._partial)) from error
            view, at = view[written:], at + written

    def _advance(self, data: memoryview) -> None:
        """Move the end of the file over `data`, hashing it page by page."""
        while len(data):
            room = PAGE - self._at % PAGE
            part, data = data[:room], data[room:]
            self._page.update(part)
            self._at += len(part)
            if self._at % PAGE == 0:
                self._page_digests.append(self._page.digest())
                self._page = hashlib.sha256()

    def _add_metadata(self, rows: bytes) -> None:
        self._metadata += rows
        if len(self._metadata) >= _METADATA_BUFFER:
            self._flush_metadata()

    def _flush_metadata(self) -> None:
        self._write_all(self._metadata, self._metadata_at)
        self._metadata_at += len(self._metadata)
        self._metadata = bytearray()


def _runs(pointers: NDArray[np.int64], sizes: NDArray[Any]) -> list[tuple[int, int]]:
    """(first, last) of each stretch of samples that lie end to end."""
    if not len(pointers):
        return []
    breaks = np.flatnonzero(pointers[1:] != pointers[:-1] + sizes[:-1]).tolist()
    return list(zip([0, *(b + 1 for b in breaks)], [*breaks, len(pointers) - 1], strict=True))


def _fill_image(
    rows: NDArray[Any],
    field: ImageField,
    pointers: NDArray[np.int64],
    sizes: NDArray[Any],
    shapes: NDArray[Any],
) -> None:
    if field.type_id == TYPE_CUSTOM:
        rows["ptr"], rows["size"] = pointers, sizes
    elif field.type_id == TYPE_RGB_IMAGE:
        rows["mode"], rows["data_ptr"] = field.mode, pointers
        rows["height"], rows["width"] = shapes[:, 0], shapes[:, 1]
    else:
        rows[:] = pointers
