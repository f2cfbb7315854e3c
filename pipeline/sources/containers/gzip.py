"""Gzip files, mostly of tars: any range of what they inflate to, best in rising order.

Reading goes forward at the speed of zlib with a few MiB of memory, whatever the size of the
file. The scan leaves a point to start from every GiB of output (`Points`), so that a run that is
taken up again, or a range further back, inflates a GiB at most. Why not indexed_gzip: each of its
reads starts from the point before, so that a forward pass is quadratic in the distance of the
points, and it holds all points in memory, 32 KiB each.
"""

import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.containers import Opened
from pipeline.sources.containers.gzip_index import Point, Points, Sums
from pipeline.sources.containers.zlib_stream import GZIP, Inflate, InflateError
from pipeline.sources.index import Container, Place

MAGIC = b"\x1f\x8b"
SPACING = 1 << 30  # bytes of output between points
_CHUNK = 1 << 20
_TRAILER = 8  # bytes: checksum and length after a member's data


class DamagedGzipError(SourceError):
    """Truncated or corrupt, whatever it holds."""


class Gunzip:
    """What a gzip file inflates to, as a file that is read forward. Members follow each other."""

    def __init__(self, path: Path, points: Points | None = None, sums: Sums | None = None) -> None:
        """points: gets a point every SPACING bytes; sums: what `sum_up` asks for."""
        self.path, self._points, self._sums = path, points, sums
        self._summed = (sys.maxsize, sys.maxsize)  # from, to
        self._sum = 0  # of those of its bytes that have passed
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

    def sum_up(self, offset: int, size: int) -> None:
        """Put the CRC-32 of these bytes into the sums once they have passed; of two ranges that
        overlap, of the second one alone.
        """
        assert offset >= self._offset, (offset, self._offset)
        self._summed, self._sum = (offset, offset + size), 0

    def _advance(self, count: int) -> None:
        if self._sums is not None:
            start, stop = (max(0, at - self._offset) for at in self._summed)
            self._sum = zlib.crc32(self._ready[start : min(stop, count)], self._sum)
            if stop <= count:
                self._sums.add(self._summed[0], self._summed[1] - self._summed[0], self._sum)
                self._summed = (sys.maxsize, sys.maxsize)
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
            summed = str(error) in ("incorrect data check", "incorrect length check")
            raise self._damaged(
                "its gzip checksum is wrong" if summed else "it does not unpack as gzip"
            ) from error
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


def sums_of(path: Path, folder: Path) -> Sums:
    """Those of the members of a gzip file, in the folder of the scan."""
    return Sums(folder / f"{path.name}.sums")


def is_gzip(path: Path) -> bool:
    """By its first bytes."""
    with path.open("rb") as file:
        return file.read(2) == MAGIC


@contextmanager
def scanned_gzip(path: Path, folder: Path) -> Iterator[Gunzip]:
    """The stream, which leaves in `folder` what reading it again needs; its end is checked."""
    points, sums = points_of(path, folder), sums_of(path, folder)
    points.clear()
    sums.clear()
    with Gunzip(path, points, sums) as stream:
        yield stream
        stream.finish()
    points.sync()
    sums.sync()


class GzipReader(Opened):
    """Members are byte ranges of what the file inflates to, best read in rising order."""

    by_parent, anywhere = True, False

    def __init__(self, path: Path, container: Container, folder: Path) -> None:
        super().__init__(path, container, folder)
        self._points, self._sums = points_of(path, folder), sums_of(path, folder)
        self._stream = Gunzip(path)

    def read(self, place: Place) -> bytes:
        """A member, found to be what was indexed."""
        data = self.inflate(place.offset, place.size)
        if self._sums.find(place.offset, place.size) != zlib.crc32(data):
            raise SourceError(
                f"{self.path}: {place.member} has other bytes than when it was indexed: "
                "the file, its disk or the memory is damaged; check it with `gzip -t`, then start "
                "over with --overwrite"
            )
        return data

    def inflate(self, offset: int, size: int) -> bytes:
        """Any bytes of the stream, unchecked."""
        if not 0 <= offset - self._stream.tell() < SPACING:
            self._move_to(offset)
        self._stream.seek(offset)
        data = self._stream.read(size)
        if len(data) < size:
            raise SourceError(f"{self.path} has become shorter since it was indexed")
        return data

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()

    def _move_to(self, offset: int) -> None:
        """A stream not after `offset`: from a point, as it is, or from the start of the file."""
        stream, point = self._stream, self._points.before(offset)
        if offset >= stream.tell() and (point is None or point.output <= stream.tell()):
            return
        stream.close()
        self._stream = Gunzip(self.path)
        if point is not None:
            self._stream.start_at(point)
