"""What a scan of a gzip file leaves on disk, so that its members can be read again from the middle:
points to start from, and a checksum of each member.
"""

import os
import struct
import zlib
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from pipeline.sources.containers.zlib_stream import WINDOW

_POINT = struct.Struct("<QQHH")  # output offset, input offset, bits, window size
_CRC = struct.Struct("<I")  # of the record behind it
_SUM = struct.Struct("<QQI")  # offset, size, CRC-32
_BUFFERED = 1 << 16  # bytes of sums that wait to be written


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
        _sync(self.path)

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


class Sums:
    """CRC-32 of each member, on disk, in their order. They are made while the whole stream is
    inflated and found to be sound by its own checksum; what is inflated from a point on has none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = bytearray()

    def clear(self) -> None:
        """Begin anew."""
        self.path.write_bytes(b"")
        self._waiting.clear()

    def add(self, offset: int, size: int, crc: int) -> None:
        """One more; offsets rise."""
        self._waiting += _SUM.pack(offset, size, crc)
        if len(self._waiting) >= _BUFFERED:
            self._write()

    def sync(self) -> None:
        """All of them are on the disk when this returns."""
        self._write()
        _sync(self.path)

    def find(self, offset: int, size: int) -> int | None:
        """Of the bytes from `offset` on; None if no member lies there."""
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:

            def record(number: int) -> tuple[int, int, int]:
                data = os.pread(file.fileno(), _SUM.size, number * _SUM.size)
                return _SUM.unpack(data) if len(data) == _SUM.size else (1 << 64, 0, 0)

            count = os.fstat(file.fileno()).st_size // _SUM.size
            start, length, crc = record(
                bisect_left(range(count), offset, key=lambda number: record(number)[0])
            )
        return crc if (start, length) == (offset, size) else None

    def _write(self) -> None:
        with self.path.open("ab") as file:
            file.write(self._waiting)
        self._waiting.clear()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
