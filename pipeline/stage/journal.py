"""What a run leaves for the one that goes on after an interruption, in files that check themselves.

Three kinds: a record that is written whole (`save`), records that are only added (`Journal`), and
numbers that are only added (`Table`), of which a record says how many there are. `Commits` brings
what a run has written to the disk now and then, and then notes it.
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.errors import DamagedError
from pipeline.files import from_json, sync_directory, write_at, write_whole

Record = dict[str, Any]
COMMIT_SECONDS = 1.0
_READ_BYTES = 1 << 20


def save(path: Path, record: Record) -> None:
    """In place of what was there, which stays until this is on the disk; then so are all files that
    were made beside it.
    """
    write_whole(path, _line(record))
    sync_directory(path.parent)


def load(path: Path) -> Record | None:
    """What was saved; None where nothing was."""
    try:
        record = _parse(path.read_bytes())
    except FileNotFoundError:
        return None
    if record is None:
        raise damaged(path)
    return record


def damaged(path: Path) -> DamagedError:
    """The error for what cannot be gone on from."""
    return DamagedError(f"{path} is not what was written: start over with --overwrite")


class Journal:
    """Append-only records on disk, one a line. A line that was cut off by a crash fails its
    checksum and is dropped with all behind it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def read(self, most: int | None = None) -> Iterator[Record]:
        """All whole records, or the first `most`. Once all are read, what lies behind them is cut
        off.
        """
        end = count = 0
        with self.path.open("rb") as file:
            while count != most and (record := _parse(line := file.readline())) is not None:
                yield record
                end, count = end + len(line), count + 1
        os.ftruncate(self._fd, end)

    def append(self, *records: Record) -> None:
        """Add records; they are on the disk when this returns."""
        write_at(self._fd, b"".join(map(_line, records)), os.fstat(self._fd).st_size, self.path)
        os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


class Table:
    """Rows of numbers that are only added, on disk. `checksum`: CRC-32 of the first `rows`."""

    def __init__(self, path: Path, dtype: DTypeLike, rows: int = 0, checksum: int = 0) -> None:
        """rows, checksum: of what an interrupted run has left; DamagedError if it is not that."""
        self.path, self.dtype, self.rows, self.checksum = path, np.dtype(dtype), rows, 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._fd, rows * self.dtype.itemsize)
        step = _READ_BYTES // self.dtype.itemsize
        for start in range(0, rows, step):
            read = self.read(start, min(step, rows - start))
            self.checksum = zlib.crc32(read.tobytes(), self.checksum)
        if self.checksum != checksum:
            raise damaged(path)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows, (m,) of the table's dtype."""
        data = np.ascontiguousarray(rows, self.dtype).tobytes()
        write_at(self._fd, data, self.rows * self.dtype.itemsize, self.path)
        self.rows, self.checksum = self.rows + len(rows), zlib.crc32(data, self.checksum)

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Rows from `start` on."""
        size = self.dtype.itemsize
        return np.frombuffer(os.pread(self._fd, count * size, start * size), self.dtype)

    def sync(self) -> None:
        """Until it is on the disk."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


class Commits:
    """describe: the state, once all of it is with the system. keep: until what was written before
    it was described is on the disk, and then the description, too.
    """

    def __init__(self, describe: Callable[[], Any], keep: Callable[[Any], None]) -> None:
        self._describe, self._keep = describe, keep
        self._thread = ThreadPoolExecutor(1)
        self._doing: Future[None] | None = None
        self._last = time.monotonic()

    def maybe(self) -> None:
        """In a thread, if the last commit is done and COMMIT_SECONDS have passed since."""
        if time.monotonic() - self._last < COMMIT_SECONDS:
            return
        if self._doing is None or self._doing.done():
            self._settle()
            self._doing = self._thread.submit(self._keep, self._describe())

    def last(self) -> None:
        """All that was written, now."""
        self._settle()
        self._keep(self._describe())

    def close(self) -> None:
        """No more commits."""
        self._thread.shutdown()

    def _settle(self) -> None:
        """Wait for the commit that is on its way; its errors are raised here."""
        if self._doing is not None:
            self._doing.result()
        self._doing, self._last = None, time.monotonic()


def _line(record: Record) -> bytes:
    """A CRC-32 in hexadecimal, a space, JSON."""
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> Record | None:
    checksum, _, text = line.partition(b" ")
    text, newline, _ = text.partition(b"\n")
    if not newline or checksum != b"%08x" % zlib.crc32(text):
        return None
    record: Record = from_json(text)
    return record
