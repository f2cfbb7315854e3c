"""A tar in, the places of its files out: also of a tar within a tar, or within a gzip stream.

Members are read in place by their offset, nothing is unpacked, and a member's name is only ever
a name. The standard library takes a damaged header for the end of the archive; here it is an
error, as is an archive that is cut short.
"""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from pipeline.errors import SourceError
from pipeline.sources.find import refuse_broken_link
from pipeline.sources.gzipped import DamagedGzipError, Gunzip, is_gzip
from pipeline.sources.junk import is_junk, junk_in

Image = tuple[str, str, int, int]  # name, member, offset, size: as Scan.add_class takes them
_BLOCK = tarfile.BLOCKSIZE
_LONGEST_HEADER = 1 << 24  # bytes; more than any name or pax record takes
_MOST_PADDING = 1 << 20  # bytes of zeros that end an archive; usual are 1 to 10 kB


class Stream(Protocol):
    """What a tar is read from; `seek` goes forward only."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer at the end."""

    def seek(self, offset: int, /) -> object:
        """Go to an offset from the start."""

    def tell(self) -> int:
        """Offset of the next byte."""


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: `offset` is that of its data in the outermost stream."""

    name: str
    offset: int
    size: int

    @property
    def stem(self) -> str:
        """The name without folders and without its last suffix."""
        return PurePosixPath(self.name).stem

    @property
    def base(self) -> str:
        """The name without folders: whatever they were, they lead nowhere."""
        return PurePosixPath(self.name).name


class _Window:
    """Part of a stream as a file that starts at 0; remembers what was read last."""

    def __init__(self, stream: Stream, start: int, size: int | None) -> None:
        self._stream, self._start, self._size = stream, start, size
        self._position = 0
        self.last, self.last_at = b"", start

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        if self._size is not None:
            size = max(0, min(size, self._size - self._position))
        self.last_at = self._start + self._position
        if size == 1 and self._stream.tell() == self.last_at + 1:
            self.last = b"?"  # tarfile asks whether the byte is there: it has been passed
        else:
            if self._stream.tell() != self.last_at:
                self._stream.seek(self.last_at)
            self.last = self._stream.read(size)
        self._position += len(self.last)
        return self.last

    def seek(self, offset: int) -> None:
        self._position = offset

    def tell(self) -> int:
        return self._position

    def stop(self) -> int:
        """Where it really ends, in bytes from the start of the stream."""
        if isinstance(self._stream, io.IOBase):
            self._stream.seek(0, os.SEEK_END)
        stop = self._stream.tell()
        return stop if self._size is None else min(stop, self._start + self._size)


def walk(
    stream: Stream,
    where: str,
    start: int = 0,
    size: int | None = None,
    junk: Counter[str] | None = None,
) -> Iterator[Member]:
    """Regular files of the tar that is `size` bytes from `start` of `stream`, in their order.

    Folders are left out, and what `pipeline.sources.junk` knows, which is counted in `junk`.
    where: for errors, which name it. SourceError for links, devices, sparse files, and any damage.
    """
    found = Counter() if junk is None else junk
    window, end = _Window(stream, start, size), start
    try:
        tar: Any = tarfile.TarFile(fileobj=window)  # type: ignore[arg-type]
        while (entry := tar.next()) is not None:
            tar.members = []  # it would keep all of them
            # base-256 sizes have a sign: the next header would be looked for further back
            if entry.size < 0 or start + entry.offset_data < end:
                raise tarfile.ReadError(f"{entry.name!r} of {entry.size:,} bytes")
            end = start + entry.offset_data + entry.size
            if (passed := junk_in(entry.name)) is not None:
                found[passed] += 1
            elif not entry.isdir():
                yield _member(entry, where, start)
    except (tarfile.TarError, ValueError) as error:
        raise _trouble(window, where, end, str(error)) from error
    if len(window.last) < _BLOCK or window.last.strip(b"\0"):  # these zeros end an archive
        raise _trouble(window, where, end, "no header of a file where the next one should be")
    _refuse_more(window, where)


def _refuse_more(window: _Window, where: str) -> None:
    """SourceError if zeros are not the end: a hole, as of a download that lacks a piece, looks
    like the end of an archive, too.
    """
    at = window.last_at
    padding = len(window.last)
    while piece := window.read(_MOST_PADDING):
        padding += len(piece)
        if piece.count(0) < len(piece) or padding > _MOST_PADDING:
            raise SourceError(
                f"{where} is damaged: zeros at byte {at:,} end it, but it goes on behind them; "
                "download it again, or if it was joined of several tars, pack it anew"
            )


_NOT_PLAIN = (
    (tarfile.TarInfo.islnk, "a hard link", "tar --hard-dereference"),
    (tarfile.TarInfo.issym, "a symbolic link", "tar --dereference"),
    (tarfile.TarInfo.issparse, "a sparse file", "tar without --sparse"),
    (lambda entry: not entry.isreg(), "a device or a pipe", "without it"),
)


def _member(entry: tarfile.TarInfo, where: str, start: int) -> Member:
    for is_one, what, advice in _NOT_PLAIN:
        if is_one(entry):
            raise SourceError(
                f"{where}: {entry.name} is {what}, not a plain file: pack the archive with the "
                f"files themselves ({advice})"
            )
    return Member(entry.name, start + entry.offset_data, entry.size)


def _trouble(window: _Window, where: str, end: int, why: str) -> SourceError:
    """What is amiss where reading stopped; end: of the data of the last file."""
    stop = window.stop()
    if stop < end:
        why = f"is cut short at byte {stop:,}: the data of its last file go on to byte {end:,}"
    elif len(window.last) < _BLOCK:
        why = f"is cut short at byte {stop:,}: the zeros that end an archive are missing"
    else:
        why = f"is damaged near byte {window.last_at:,}: {why}"
    return SourceError(f"{where} {why}; download it again")


def is_tar(path: Path) -> bool:
    """By the checksum of its first header, which tars from before the magic `ustar` have, too."""
    with path.open("rb") as file, suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
        return True
    return False


def open_tar(path: Path) -> BufferedReader:
    """A plain tar; SourceError if it is in gzip."""
    if is_gzip(path):
        raise SourceError(f"{path} is packed with gzip: unpack it (zcat) to a plain tar")
    return path.open("rb")


def _opened(path: Path) -> "Gunzip | BufferedReader":
    return Gunzip(path) if is_gzip(path) else path.open("rb")


def first_members(path: Path, count: int = 1) -> Iterator[Member]:
    """The first files of a tar, plain or in gzip; none if it is no tar."""
    if not path.is_file() or not (is_tar(path) or is_gzip(path)):
        return
    with closing(_opened(path)) as stream:
        try:
            yield from islice(walk(stream, str(path)), count)
        except DamagedGzipError:
            raise
        except SourceError:
            return


def tars_in(folder: Path) -> list[Path]:
    """Sorted visible `*.tar` of a folder; none if it is no folder."""
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.glob("*.tar") if not is_junk(path.name))
    for path in found:
        refuse_broken_link(path)
    return [path for path in found if path.is_file()]


def class_images(members: Sequence[Member], where: str, prefix: str = "") -> list[Image]:
    """The files of a class as images; SourceError if there are none, or two of a name."""
    if not members:
        raise SourceError(f"{where} is an empty class: download it again or leave it away")
    refuse_twice((member.base for member in members), where)
    return [(m.base, prefix + m.name, m.offset, m.size) for m in members]


def refuse_twice(names: Iterable[str], where: str) -> None:
    """SourceError for a name that comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SourceError(f"{where} has two files called {name}: rename or remove one")
        seen.add(name)
