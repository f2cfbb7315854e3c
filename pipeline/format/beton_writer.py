"""Payloads and labels in, a .beton file out that is whole or absent (see `pipeline.format.beton`).

    0        2,106                    payload_start                      table_start
    +--------+------------------+-----+---------------------------+------+------------+
    | header | rows of metadata | (0) | payloads, page after page | (0)  | allocation |
    | fields | one per sample   |     | none crosses a page       |      | table      |
    +--------+------------------+-----+---------------------------+------+------------+
    last     in order, room for        in order                          collected in
             `capacity` rows                                             .sizes.partial

Rows and payloads grow side by side, each in order: a digest of each piece (1 MiB) is taken when
it is full, and only the pieces that two of the parts share are read again at the end. The
header comes last; the allocation table is missing where metadata hold sizes (zstd).

A writer can go on from a `Mark`, and then writes the same bytes as one that was never interrupted.
"""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128, xxh3_128_digest

from pipeline.errors import ConfigError, DamagedError
from pipeline.files import write_at
from pipeline.format.beton import (
    ALLOCATION,
    FIELD,
    HEADER,
    PAGE,
    PARTIAL,
    PIECE,
    TYPE_CUSTOM,
    TYPE_INT,
    TYPE_RGB_IMAGE,
    VERSION,
    ImageField,
)

DIGEST_BYTES = xxh3_128().digest_size
_PAYLOAD_ALIGNMENT = 64
_ROWS_START = HEADER.itemsize + 2 * FIELD.itemsize
_BUFFER = 1 << 17  # bytes that are gathered before they are written


@dataclass(frozen=True)
class Written:
    """A finished file: its samples, its size in bytes and its digest."""

    samples: int
    payload_bytes: int
    size: int
    digest: str


@dataclass(frozen=True)
class Mark:
    """How far a writer is: `end` of its payloads in the file. For rows, payloads and sizes in turn:
    digests of their full pieces, end to end, and in hexadecimal that of the piece begun.
    """

    samples: int
    payload_bytes: int
    end: int
    begun: tuple[str, ...]
    digests: tuple[bytes, ...]


class _Stretch:
    """A part of a file that grows from `start` to `end`, with a digest of each of its pieces. Those
    are the file's, the first one without what lies before `start`.
    """

    def __init__(self, path: Path, fd: int, start: int) -> None:
        self.path, self.start, self.end = path, start, start
        self._fd = fd
        self._buffer = bytearray()
        self._digests, self._reported = bytearray(), 0
        self._begun = xxh3_128()

    def append(self, data: memoryview) -> None:
        """Grow by `data`."""
        while len(data):
            part, data = data[: PIECE - self.end % PIECE], data[PIECE - self.end % PIECE :]
            if len(self._buffer) + len(part) > _BUFFER:
                self.flush()
            self._hash(part)
            if len(part) > _BUFFER:  # is not copied
                write_at(self._fd, part, self.end - len(part), self.path)
            else:
                self._buffer += part

    def flush(self) -> None:
        """All that was appended is with the system now."""
        write_at(self._fd, self._buffer, self.end - len(self._buffer), self.path)
        self._buffer.clear()

    def new_digests(self) -> bytes:
        """Of the pieces that were filled since the last call."""
        new = bytes(self._digests[self._reported :])
        self._reported = len(self._digests)
        return new

    def begun(self) -> str:
        """Digest of the piece that is not full, in hexadecimal."""
        return self._begun.hexdigest()

    def digest(self, number: int) -> bytes:
        """Of the part of a piece of the file that this stretch has."""
        at = (number - self.start // PIECE) * DIGEST_BYTES
        return bytes(self._digests[at : at + DIGEST_BYTES]) or self._begun.digest()

    def go_on(self, end: int, digests: bytes, begun: str) -> None:
        """From a mark: of what lies before `end` only the piece begun is read; DamagedError if it
        is not what was written. `verify` finds what happens to the others.
        """
        self._digests[:], self._reported = digests, len(digests)
        self.end = max(self.start, end // PIECE * PIECE)
        self._hash(memoryview(os.pread(self._fd, end - self.end, self.end)))
        if self.end != end or self.begun() != begun:
            raise _changed(self.path)

    def check(self, number: int, piece: memoryview) -> None:
        """DamagedError unless a piece of the file, read again, holds what was written."""
        first = number * PIECE
        part = piece[max(0, self.start - first) : max(0, self.end - first)]
        if len(part) and xxh3_128_digest(part) != self.digest(number):
            raise _changed(self.path)

    def _hash(self, part: memoryview) -> None:
        self._begun.update(part)
        self.end += len(part)
        if len(part) and self.end % PIECE == 0:
            self._digests += self._begun.digest()
            self._begun = xxh3_128()


class BetonWriter:
    """Writes one file beside its final name; `finish` completes it, `publish` renames it.

    Samples arrive in their final order, at most `capacity` of them. mark: go on from there with the
    partial file.
    """

    def __init__(
        self, path: Path, field: ImageField, capacity: int, mark: Mark | None = None
    ) -> None:
        self.path, self.field, self._capacity = path, field, capacity
        partial = path.with_name(path.name + PARTIAL)
        begun = mark is not None and mark.samples > 0
        self._fds = [_open(partial, begun)]
        rows_end = _ROWS_START + capacity * field.row.itemsize
        payload_start = -(-rows_end // _PAYLOAD_ALIGNMENT) * _PAYLOAD_ALIGNMENT
        self._rows = _Stretch(partial, self._fds[0], _ROWS_START)
        self._payloads = _Stretch(partial, self._fds[0], payload_start)
        self._stretches = [self._rows, self._payloads]
        if field.allocates:
            sizes = path.with_name(path.name + ".sizes" + PARTIAL)
            self._fds.append(_open(sizes, begun))
            self._stretches.append(_Stretch(sizes, self._fds[1], 0))
        self._samples = self._payload_bytes = 0
        if mark is not None and begun:
            self._go_on(mark)
        self._marked = self._payloads.end
        # up to where the system has been told to forget: `finish` reads the piece of the start
        self._forgotten = max(self._marked, (payload_start // PIECE + 1) * PIECE)

    def append(
        self, payload: memoryview, sizes: NDArray[Any], labels: NDArray[Any], shapes: NDArray[Any]
    ) -> None:
        """Add samples: their payloads end to end, sizes (m,) in bytes, labels (m,),
        shapes (m, 2) as (height, width) in px.
        """
        pointers = self._pointers(sizes)
        start = 0
        for first, last in _runs(pointers, sizes):
            run = int(sizes[first : last + 1].sum())
            self._payloads.append(memoryview(bytes(int(pointers[first]) - self._payloads.end)))
            self._payloads.append(payload[start : start + run])
            start += run
        rows = np.zeros(len(sizes), self.field.row)
        rows["f1"] = labels
        _fill_image(rows["f0"], self.field, pointers, sizes, shapes)
        self._rows.append(memoryview(rows.tobytes()))
        if self.field.allocates:
            table = np.zeros(len(sizes), ALLOCATION)
            table["sample_id"] = np.arange(self._samples, self._samples + len(sizes))
            table["ptr"], table["size"] = pointers, sizes
            self._stretches[2].append(memoryview(table.tobytes()))
        self._samples += len(sizes)
        self._payload_bytes += int(sizes.sum())

    def mark(self) -> Mark:
        """All that was appended is with the system now; how far that is. `digests` holds only those
        of pieces that were filled since the last mark.
        """
        for stretch in self._stretches:
            stretch.flush()
        self._marked = self._payloads.end
        return Mark(
            self._samples,
            self._payload_bytes,
            self._payloads.end,
            tuple(stretch.begun() for stretch in self._stretches),
            tuple(stretch.new_digests() for stretch in self._stretches),
        )

    def sync(self) -> None:
        """Until what was marked is on the disk; then let the system forget the payloads, as they
        are not read again soon: new pages for what follows cost more than writing to them. All but
        the last, partial page of the system, which would be read back for what follows.
        """
        for fd in self._fds:
            os.fdatasync(fd)
        end = self._marked // mmap.PAGESIZE * mmap.PAGESIZE
        if end > self._forgotten:
            length = end - self._forgotten
            os.posix_fadvise(self._fds[0], self._forgotten, length, os.POSIX_FADV_DONTNEED)
            self._forgotten = end

    def finish(self) -> Written:
        """Write tables and header; the file is whole then, under its partial name."""
        while spare := min(self._payloads.start - self._rows.end, _BUFFER):
            self._rows.append(memoryview(bytes(spare)))  # of samples that there are not
        table_start = self._payloads.end
        if self.field.allocates:
            self._move_allocations()
        for stretch in (self._rows, self._payloads):
            stretch.flush()
        os.ftruncate(self._fds[0], self._payloads.end)
        write_at(self._fds[0], self._header(table_start), 0, self._rows.path)
        digest = self._digest()
        self.sync()
        return Written(self._samples, self._payload_bytes, self._payloads.end, digest)

    def close(self) -> None:
        """Let go of the file; it stays under the name that it has."""
        while self._fds:
            os.close(self._fds.pop())

    def _digest(self) -> str:
        """As of `pipeline.format.beton.digest`."""
        outer, border = xxh3_128(), self._payloads.start // PIECE
        for number in range(-(-self._payloads.end // PIECE)):
            if number in (0, border):  # of header and rows, of rows and payloads
                piece = memoryview(os.pread(self._fds[0], PIECE, number * PIECE))
                self._rows.check(number, piece)
                self._payloads.check(number, piece)
                outer.update(xxh3_128_digest(piece))
            else:
                stretch = self._rows if number < border else self._payloads
                outer.update(stretch.digest(number))
        return outer.hexdigest()

    def _header(self, table_start: int) -> bytes:
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, 2, PAGE, self._samples, table_start)
        fields = np.zeros(2, FIELD)
        image, label = self.field, (TYPE_INT, b"")
        described = ((b"image", image.type_id, image.arguments), (b"label", *label))
        for row, (name, type_id, arguments) in zip(fields, described, strict=True):
            row["type_id"] = type_id
            row["name"][: len(name)] = np.frombuffer(name, np.uint8)
            row["arguments"][: len(arguments)] = np.frombuffer(arguments, np.uint8)
        return header.tobytes() + fields.tobytes()

    def _pointers(self, sizes: NDArray[Any]) -> NDArray[np.int64]:
        """Where each payload goes: end to end, but never across a page boundary."""
        end = self._payloads.end
        ends = end + np.cumsum(sizes, dtype=np.int64)
        if not len(sizes) or ends[-1] <= (end // PAGE + 1) * PAGE:
            return np.asarray(ends - sizes, dtype=np.int64)
        pointers = np.empty(len(sizes), np.int64)
        for i, size in enumerate(sizes.tolist()):
            if size > PAGE:
                raise ConfigError(f"a sample of {size} bytes is larger than a page of {PAGE}")
            if end % PAGE + size > PAGE:
                end = -(-end // PAGE) * PAGE
            pointers[i] = end
            end += size
        return pointers

    def _go_on(self, mark: Mark) -> None:
        """From a mark, dropping what lies behind it."""
        if os.fstat(self._fds[0]).st_size < mark.end:
            raise _changed(self._payloads.path)
        ends = (
            _ROWS_START + mark.samples * self.field.row.itemsize,
            mark.end,
            mark.samples * ALLOCATION.itemsize,
        )
        for i, stretch in enumerate(self._stretches):
            stretch.go_on(ends[i], mark.digests[i], mark.begun[i])
        os.ftruncate(self._fds[0], mark.end)
        self._samples, self._payload_bytes = mark.samples, mark.payload_bytes

    def _move_allocations(self) -> None:
        """Put the table of sizes behind the payloads."""
        sizes = self._stretches[2]
        sizes.flush()
        for number in range(-(-sizes.end // PIECE)):
            first = number * PIECE
            piece = memoryview(os.pread(self._fds[1], min(PIECE, sizes.end - first), first))
            sizes.check(number, piece)
            self._payloads.append(piece)


def publish(path: Path) -> None:
    """Give a finished file its final name; done already, nothing happens."""
    partial = path.with_name(path.name + PARTIAL)
    if partial.exists():
        partial.rename(path)
    path.with_name(path.name + ".sizes" + PARTIAL).unlink(missing_ok=True)


def _open(path: Path, begun: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | (0 if begun else os.O_CREAT | os.O_TRUNC), 0o666)
    except FileNotFoundError as error:
        raise DamagedError(
            f"{path} has gone, though the run that was interrupted wrote it: start over with "
            "--overwrite"
        ) from error


def _changed(path: Path) -> DamagedError:
    return DamagedError(
        f"{path} is not what was written: something has changed it since; start over with "
        "--overwrite"
    )


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
