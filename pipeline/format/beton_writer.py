"""Payloads and labels in, a .beton file out that is whole or absent (see `pipeline.format.beton`).

A writer can be taken up again where it was at a `Mark`, and then writes the same bytes as
one that was never interrupted.
"""

import hashlib
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamagedError
from pipeline.format.beton import (
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

_DATA_ALIGNMENT = 64
_METADATA_BUFFER = 1 << 16
_BUFFER = 1 << 17  # bytes of payload that are gathered before they are written


@dataclass(frozen=True)
class Written:
    """A finished file: its samples, its size in bytes and its digest."""

    samples: int
    payload_bytes: int
    size: int
    digest: str


@dataclass
class Mark:
    """How far a writer is: `at` is the end of the file in bytes, `pages` the digests of the
    full pages before it, in hexadecimal; `page`, `rows` and `sizes` those of what there is of
    the next page, of the rows of metadata, and of the allocation table.
    """

    samples: int = 0
    payload_bytes: int = 0
    at: int = 0
    pages: list[str] = field(default_factory=list)
    page: str = ""
    rows: str = ""
    sizes: str = ""


class BetonWriter:
    """Writes one file beside its final name; `finish` completes it, `publish` renames it.

    Samples arrive in their final order. Room for `capacity` rows of metadata is kept
    behind the header; payloads follow, none across a page boundary. mark: take up the
    partial file that is there from this point on.
    """

    def __init__(
        self, path: Path, field: ImageField, capacity: int, mark: Mark | None = None
    ) -> None:
        self.path, self.field, self._capacity = path, field, capacity
        self._partial = path.with_name(path.name + PARTIAL)
        self._sizes = path.with_name(path.name + ".sizes" + PARTIAL) if field.allocates else None
        self._tables_at = HEADER.itemsize + 2 * FIELD.itemsize
        end = self._tables_at + capacity * field.row.itemsize
        start = -(-end // _DATA_ALIGNMENT) * _DATA_ALIGNMENT
        self._first_page = start // PAGE
        mark = mark or Mark(at=start)
        self._samples, self._payload_bytes, self._at = mark.samples, mark.payload_bytes, mark.at
        self._page_digests = [bytes.fromhex(digest) for digest in mark.pages]
        self._marked = len(self._page_digests)
        self._marked_at = self._at
        self._forgotten = max(self._at, (self._first_page + 1) * PAGE)  # `finish` reads up to there
        self._buffer, self._filled, self._metadata = bytearray(_BUFFER), 0, bytearray()
        self._fds = [_open(path, mark.samples > 0) for path in (self._partial, self._sizes) if path]
        self._page, self._rows, self._table = (hashlib.sha256() for _ in range(3))
        if mark.samples:
            self._take_up(mark, start)

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
            self._put(memoryview(bytes(int(pointers[first]) - self._at)))
            self._put(payload[start : start + run])
            start += run
        rows = np.zeros(len(sizes), self.field.row)
        rows["f1"] = labels
        _fill_image(rows["f0"], self.field, pointers, sizes, shapes)
        written = rows.tobytes()
        self._metadata += written
        self._rows.update(written)
        if self._sizes is not None:
            ids = np.arange(self._samples, self._samples + len(sizes))
            table = np.zeros(len(sizes), ALLOCATION)
            table["sample_id"], table["ptr"], table["size"] = ids, pointers, sizes
            written = table.tobytes()
            self._write_all(written, self._samples * ALLOCATION.itemsize, self._sizes)
            self._table.update(written)
        self._samples += len(sizes)
        self._payload_bytes += int(sizes.sum())
        if len(self._metadata) >= _METADATA_BUFFER:
            self._flush_metadata()

    def mark(self) -> Mark:
        """All that was appended is with the system now; how far that is. `pages` holds only
        those that were filled since the last mark.
        """
        self._flush()
        self._flush_metadata()
        new, self._marked = self._page_digests[self._marked :], len(self._page_digests)
        self._marked_at = self._at
        return Mark(
            self._samples,
            self._payload_bytes,
            self._at,
            [page.hex() for page in new],
            self._page.hexdigest(),
            self._rows.hexdigest(),
            self._table.hexdigest(),
        )

    def sync(self) -> None:
        """Until what was marked is on the disk; then let the system forget the payloads, as they
        are not read again soon: new pages for what follows cost more than writing to them. All but
        the first page of payloads, which `finish` reads, and the last, partial page of the system,
        which would be read back for what follows.
        """
        for fd in self._fds:
            os.fdatasync(fd)
        end = self._marked_at // mmap.PAGESIZE * mmap.PAGESIZE
        if end > self._forgotten:
            length = end - self._forgotten
            os.posix_fadvise(self._fds[0], self._forgotten, length, os.POSIX_FADV_DONTNEED)
            self._forgotten = end

    def finish(self) -> Written:
        """Write tables and header; the file is whole then, under its partial name."""
        self._flush_metadata()
        row = self.field.row.itemsize
        spare = (self._capacity - self._samples) * row  # a run that was cut off may have been here
        self._write_all(bytes(spare), self._tables_at + self._samples * row)
        table_at = self._at
        self._put_allocations()
        self._flush()
        if self._at % PAGE:
            self._page_digests.append(self._page.digest())
        os.ftruncate(self._fds[0], self._at)
        self._write_all(self._header(table_at), 0)
        outer = hashlib.sha256()
        for page in range(self._first_page + 1):  # the tables: filled out of order, so read back
            if data := os.pread(self._fds[0], PAGE, page * PAGE):
                outer.update(hashlib.sha256(data).digest())
        for inner in self._page_digests[1:]:
            outer.update(inner)
        self.sync()
        return Written(self._samples, self._payload_bytes, self._at, outer.hexdigest())

    def close(self) -> None:
        """Let go of the file; it stays under the name that it has."""
        while self._fds:
            os.close(self._fds.pop())

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

    def _take_up(self, mark: Mark, start: int) -> None:
        """Drop what lies behind the mark, and read what is needed to go on; DamagedError if it
        is not what was written. Full pages are not read: `verify` finds what happens to them.
        """
        os.ftruncate(self._fds[0], max(self._at, os.fstat(self._fds[0]).st_size))
        page = max(self._at // PAGE * PAGE, start)
        rows_end = self._tables_at + self._samples * self.field.row.itemsize
        checks = [(self._page, 0, page, self._at, mark.page),
                  (self._rows, 0, self._tables_at, rows_end, mark.rows)]  # fmt: skip
        if self._sizes is not None:
            checks.append((self._table, 1, 0, self._samples * ALLOCATION.itemsize, mark.sizes))
        for found, number, first, end, recorded in checks:
            _hash_range(found, self._fds[number], first, end)
            if found.hexdigest() != recorded:
                raise DamagedError(
                    f"{self._partial} is not what was written: something has changed it since "
                    "the run was interrupted; start over with --overwrite"
                )
        os.ftruncate(self._fds[0], self._at)

    def _put_allocations(self) -> None:
        """Move the table of sizes behind the payloads."""
        if self._sizes is None:
            return
        at, end = 0, self._samples * ALLOCATION.itemsize
        while at < end:
            rows = os.pread(self._fds[1], min(_BUFFER, end - at), at)
            self._put(memoryview(rows))
            at += len(rows)

    def _put(self, data: memoryview) -> None:
        """Move the end of the file over `data`, hashing it page by page."""
        while len(data):
            part, data = data[: PAGE - self._at % PAGE], data[PAGE - self._at % PAGE :]
            self._page.update(part)
            self._gather(part)
            self._at += len(part)
            if self._at % PAGE == 0:
                self._page_digests.append(self._page.digest())
                self._page = hashlib.sha256()

    def _gather(self, part: memoryview) -> None:
        """Keep small parts until there are enough to write; large ones are not copied."""
        if self._filled + len(part) > _BUFFER:
            self._flush()
        if len(part) > _BUFFER:
            self._write_all(part, self._at)
        else:
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)

    def _flush(self) -> None:
        self._write_all(memoryview(self._buffer)[: self._filled], self._at - self._filled)
        self._filled = 0

    def _flush_metadata(self) -> None:
        end = self._tables_at + self._samples * self.field.row.itemsize
        self._write_all(self._metadata, end - len(self._metadata))
        self._metadata = bytearray()

    def _write_all(
        self, data: bytes | bytearray | memoryview, at: int, path: Path | None = None
    ) -> None:
        """Until all of it is written: short writes happen, on a disk that fills up too."""
        fd = self._fds[0] if path is None else self._fds[1]
        view = memoryview(data)
        while len(view):
            try:
                written = os.pwrite(fd, view, at)
            except OSError as error:
                where = str(path or self._partial)
                raise OSError(error.errno, error.strerror, where) from error
            view, at = view[written:], at + written


def _hash_range(found: Any, fd: int, at: int, end: int) -> None:
    while at < end and (data := os.pread(fd, min(PAGE, end - at), at)):
        found.update(data)
        at += len(data)


def publish(path: Path) -> None:
    """Give a finished file its final name; done already, nothing happens."""
    partial = path.with_name(path.name + PARTIAL)
    if partial.exists():
        partial.rename(path)
    path.with_name(path.name + ".sizes" + PARTIAL).unlink(missing_ok=True)


def _open(path: Path, there: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | (0 if there else os.O_CREAT | os.O_TRUNC), 0o666)
    except FileNotFoundError as error:
        raise DamagedError(
            f"{path} has gone, though the run that was interrupted wrote it: start over with "
            "--overwrite"
        ) from error


def _runs(pointers: NDArray[np.int64], sizes: NDArray[Any]) -> list[tuple[int, int]]:
    """(first, last) of each stretch of samples that lie end to end."""
    if not len(pointers):
        return []
    if pointers[-1] - pointers[0] == sizes[:-1].sum():
        return [(0, len(pointers) - 1)]
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
