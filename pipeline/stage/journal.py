"""What a run has finished so far, in a file that only grows: an interrupted run resumes there.

One line a record: a CRC-32 in hexadecimal, a space, JSON. A line that was cut off by a crash
fails its checksum and is dropped with all behind it.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Journal:
    """Append-only records on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def read(self) -> Iterator[Record]:
        """All whole records, one at a time: a run of days has gigabytes of them. Once all are
        read, what lies behind them is cut off.
        """
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if (record := _parse(line)) is None:
                    break
                yield record
                end += len(line)
        os.ftruncate(self._fd, end)

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns."""
        text = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()
        line = b"%08x %b\n" % (zlib.crc32(text), text)
        at = os.fstat(self._fd).st_size
        try:
            while line:
                written = os.pwrite(self._fd, line, at)
                line, at = line[written:], at + written
            os.fsync(self._fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def _parse(line: bytes) -> Record | None:
    checksum, _, text = line.partition(b" ")
    text, newline, _ = text.partition(b"\n")
    if not newline or checksum != b"%08x" % zlib.crc32(text):
        return None
    record: Record = json.loads(text)
    return record
