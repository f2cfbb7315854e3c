"""A gzip file in, any range of what it inflates to out, best in rising order.

Reading goes forward at the speed of zlib with a few MiB of memory, whatever the size of the
file. The scan leaves a point to start from every GiB of output (`Points`), so that a run that is
taken up again, or a range further back, inflates a GiB at most. Why not indexed_gzip: each of its
reads starts from the point before, so that a forward pass is quadratic in the distance of the
points, and it holds all points in memory, 32 KiB each.
"""

import os
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.index import Place
from pipeline.sources.zlib_stream import GZIP, WINDOW, Inflate, InflateError

MAGIC = b"\x1f\x8b"
SPACING = 1 << 30  # bytes of output between points
_CHUNK = 1 << 20
_TRAILER = 8  # bytes: checksum and length after a member's data
_POINT = struct.Struct("<QQHH")  # output offset, input offset, bits, window size
_CRC = struct.Struct("<I")  # of the record behind it


class DamagedGzipError(SourceError):
    """Truncated or corrupt, whatever it holds."""


@dataclass(frozen=True)
class Point:
    """The border of a block: `bits` of the byte before `at` belong to the block that follows."""

    output: int
    at: int
    bits: int
    window: bytes


class Points:
    """Where inflating can start, on disk: one record a point, its window of fixed size, each under
    a checksum. Bytes inflated with a wrong window look sound, as the checksum of a gzip stream
    counts from its start: a damaged record is passed over for the point before it.
    """

    _record = _CRC.size + _POINT.size + WINDOW

    def __init__(self, path: Path) -> None:
        self.path = path

    def clear(self) -> None:
        """Begin anew."""
        self.path.write_bytes(b"")

    def add(self, point: Point) -> None:
        """One more; they rise."""
        head = _POINT.pack(point.output, point.at, point.bits, len(point.window))
        record = head + point.window.ljust(WINDOW, b"\0")
        with self.path.open("ab") as file:
            file.write(_CRC.pack(zlib.crc32(record)) + record)

    def sync(self) -> None:
        """All of them are on the disk when this returns."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def before(self, output: int) -> Point | None:
        """The last sound one that is not after `output`."""
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            for number in reversed(range(self.path.stat().st_size // self._record)):
                file.seek(number * self._record + _CRC.size)
                if _POINT.unpack(file.read(_POINT.size))[0] > output:
                    continue
                file.seek(number * self._record)
                if (point := _parsed(file.read(self._record))) is not None:
                    return point
        return None


def _parsed(data: bytes) -> Point | None:
    """A record of `Points`; None if it is damaged."""
    record = memoryview(data)[_CRC.size :]
    if zlib.crc32(record) != _CRC.unpack_from(data)[0]:
        return None
    output, at, bits, size = _POINT.unpack_from(record)
    return Point(output, at, bits, bytes(record[_POINT.size :][:size]))


class Gunzip:
    """What a gzip file inflates to, as a file that is read forward. Members follow each other."""

    def __init__(self, path: Path, points: Points | None = None) -> None:
        """points: gets a point every SPACING bytes."""
        self.path, self._points = path, points
        self._file = path.open("rb")
        self._buffer = bytearray(_CHUNK)
        self._inflate = Inflate(GZIP)
        self._checked = True  # zlib has seen the head of this member, so it deals with its tail
        self._ready = memoryview(b"")
        self._offset = 0  # of the first byte in _ready
        self._last_point = 0

    def start_at(self, point: Point) -> None:
        """Go on from there."""
        self._inflate.close()
        self._file.seek(point.at - 1)
        self._inflate = Inflate.at_block(point.bits, self._file.read(1)[0], point.window)
        self._checked = False
        self._ready, self._offset = memoryview(b""), point.output

    def tell(self) -> int:
        """Bytes of output before the next `read`."""
        return self._offset

    def seek(self, offset: int) -> None:
        """Pass over what lies before `offset`, or all there is."""
        assert offset >= self._offset, (offset, self._offset)
        while self._offset < offset and (self._ready or self._fill()):
            self._advance(min(offset - self._offset, len(self._ready)))

    def finish(self) -> None:
        """Pass over all that is left: the checksum is at the very end."""
        self.seek(sys.maxsize)

    def read(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        parts = []
        while size and (self._ready or self._fill()):
            parts.append(bytes(self._ready[:size]))
            self._advance(len(parts[-1]))
            size -= len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        self._inflate.close()
        self._file.close()

    def __enter__(self) -> "Gunzip":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _advance(self, count: int) -> None:
        self._ready = self._ready[count:]
        self._offset += count

    def _fill(self) -> bool:
        """Some more output in _ready; False at the end of the file."""
        while True:
            if self._inflate.ended and not self._next_member():
                return False
            at_end = not self._inflate.pending and not self._more_input()
            count = self._take()
            if count:
                self._ready = memoryview(self._buffer)[:count]
                return True
            if at_end and not self._inflate.ended:
                raise DamagedGzipError(
                    f"{self.path} ends at byte {self._file.tell():,}, in the middle of its gzip "
                    "stream: download it again"
                )

    def _take(self) -> int:
        due = self._points is not None and self._offset - self._last_point >= SPACING
        try:
            count = self._inflate.take(self._buffer, to_block=due)
        except InflateError as error:
            raise self._damaged(str(error)) from error
        if due:
            self._mark(self._offset + count)
        return count

    def _mark(self, output: int) -> None:
        """Make a point if the state is at the border of a block."""
        bits = self._inflate.block_bits
        if bits is not None and self._points is not None and not self._inflate.ended:
            self._points.add(Point(output, self._input_offset(), bits, self._inflate.window()))
            self._last_point = output

    def _input_offset(self) -> int:
        return self._file.tell() - self._inflate.pending

    def _more_input(self) -> bool:
        data = self._file.read(_CHUNK)
        self._inflate.give(data)
        return bool(data)

    def _next_member(self) -> bool:
        """Start the member that follows; zeros that pad the file are its end."""
        at = self._input_offset() + (0 if self._checked else _TRAILER)
        self._file.seek(at)
        while (data := self._file.read(_CHUNK)) and not data.strip(b"\0"):
            pass
        if not data:
            return False
        if not data.lstrip(b"\0").startswith(MAGIC):
            raise self._damaged("what follows is no gzip stream")
        self._file.seek(-len(data.lstrip(b"\0")), 1)
        self._inflate.close()
        self._inflate, self._checked = Inflate(GZIP), True
        return True

    def _damaged(self, why: str) -> DamagedGzipError:
        return DamagedGzipError(
            f"{self.path} is damaged near byte {self._input_offset():,}: {why}; download it again"
        )


def points_of(path: Path, folder: Path) -> Points:
    """Those of a gzip file, in the folder of the scan."""
    return Points(folder / f"{path.name}.points")


def is_gzip(path: Path) -> bool:
    """By its first bytes."""
    with path.open("rb") as file:
        return file.read(2) == MAGIC


def open_gzip(path: Path, folder: Path) -> Callable[[Place], bytes]:
    """A function that reads the place it is given; folder: where the scan left the points."""
    points, stream = points_of(path, folder), Gunzip(path)

    def read(place: Place) -> bytes:
        nonlocal stream
        if not 0 <= place.offset - stream.tell() < SPACING:
            stream = _moved(stream, points, place.offset)
        stream.seek(place.offset)
        data = stream.read(place.size)
        if len(data) < place.size:
            raise SourceError(f"{path} has become shorter since it was indexed")
        return data

    return read


def _moved(stream: Gunzip, points: Points, offset: int) -> Gunzip:
    """A stream not after `offset`: from a point, as it is, or from the start of the file."""
    point = points.before(offset)
    if offset >= stream.tell() and (point is None or point.output <= stream.tell()):
        return stream
    stream.close()
    stream = Gunzip(stream.path)
    if point is not None:
        stream.start_at(point)
    return stream
