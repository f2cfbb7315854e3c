"""Tars, also within a tar or within a gzip stream: where each file in them lies.

Members are read in place by their offset, nothing is unpacked, and a member's name is only ever
a name. The standard library takes a damaged header for the end of the archive, and goes back by a
negative size; here any damage is an error, as is an archive that is cut short.
"""

import errno
import io
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Protocol

from pipeline.errors import SourceError
from pipeline.files import whole_number
from pipeline.sources.containers import Opened
from pipeline.sources.containers.gzip import DamagedGzipError, Gunzip, is_gzip, scanned_gzip
from pipeline.sources.find import packed, refuse_irregular
from pipeline.sources.index import Container, Member, Place
from pipeline.sources.junk import is_junk, junk_in
from pipeline.sources.scan import Scan

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_HEADER = 1 << 24  # bytes; more than any name or pax record takes
_LARGEST = 1 << 30  # bytes of a file that is read as a whole
_MOST_PADDING = 1 << 20  # bytes of zeros that end an archive; usual are 1 to 10 kB
_LENGTH = 20  # digits of a pax record's length
_SPARSE_FOLLOWS, _MORE_FOLLOWS = 482, 504  # in blocks: whether one of sparse places comes next
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX)


class Stream(Protocol):
    """What a tar is read from; `seek` goes forward only."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer at the end."""

    def seek(self, offset: int, /) -> object:
        """Go to an offset from the start."""

    def tell(self) -> int:
        """Offset of the next byte."""


class TarReader(Opened):
    """Members are byte ranges of a file."""

    def __init__(self, path: Path, container: Container, folder: Path) -> None:
        super().__init__(path, container, folder)
        self._fd = os.open(path, os.O_RDONLY)

    def read(self, place: Place) -> bytes:
        """One range."""
        data = os.pread(self._fd, place.size, place.offset)
        while len(data) < place.size:
            more = os.pread(self._fd, place.size - len(data), place.offset + len(data))
            if not more:
                raise SourceError(f"{self.path} has become shorter since it was indexed")
            data += more
        return data

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


class _Headers:
    """The headers of the tar that is `size` bytes from `start` of a stream, one after the other.

    The standard library parses a block; where the next one lies is reckoned here.
    """

    def __init__(self, stream: Stream, where: str, start: int, size: int | None) -> None:
        self._stream, self._where, self._start = stream, where, start
        self._limit = sys.maxsize if size is None else start + size
        self._shared: dict[str, str] = {}  # pax headers for all that follow
        self._at = start  # of the next header
        self._end = start  # of the data of the last member
        self._name = ""  # of the last member
        self._block = b""  # the last one read as a header

    def next(self) -> "_Header | None":
        """That of the next member, its offset and size checked; None at the end of the archive."""
        said: dict[str, str] = {}  # of the member, in headers before its own; the first one counts
        while (block := self._parsed()) is not None:
            at = self._at
            self._at += _BLOCK
            if block.type not in _EXTENDED:
                return self._member(at, block, self._shared | said)
            words = self._extended(at, block)
            if block.type == tarfile.XGLTYPE:
                self._shared |= words
            else:
                said = words | said
        if said:
            raise self._damaged(self._at, "a long name or pax header, and no file that it is for")
        return None

    def _parsed(self) -> tarfile.TarInfo | None:
        """The block at `_at`; None if it is of the zeros that end an archive."""
        data = self._block = self._read(self._at, _BLOCK)
        if len(data) < _BLOCK:
            raise self._cut_short("the zeros that end an archive are missing")
        try:
            return tarfile.TarInfo.frombuf(data, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if not data.strip(b"\0"):
                return None
            if self._at == self._start and (said := packed(data)):
                raise SourceError(f"{self._where} {said}") from error
            why = "no header of a file where the next one should be"
            raise self._damaged(self._at, why) from error

    def _extended(self, at: int, block: tarfile.TarInfo) -> dict[str, str]:
        """What is said of the next member in the data of a block of its own, by pax keyword."""
        if not 0 <= block.size <= _LONGEST_HEADER:
            raise self._damaged(at, f"a header of {block.size:,} bytes")
        data = self._read(self._at, block.size)
        self._at += _padded(block.size)
        if len(data) < block.size:
            raise self._cut_short(f"a header goes on to byte {self._at:,}")
        if block.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            key = "path" if block.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            if not (name := data.partition(b"\0")[0]):
                raise self._damaged(at, "a long name that is empty")
            return {key: _text(name)}
        try:
            words = dict(_pax_records(data))
        except ValueError as error:
            raise self._damaged(at, "a pax header that cannot be read") from error
        return words | {"path": words["path"].rstrip("/")} if "path" in words else words

    def _member(self, at: int, block: tarfile.TarInfo, said: dict[str, str]) -> "_Header":
        name = said.get("GNU.sparse.name") or said.get("path") or block.name
        size = said.get("size") or str(block.size)
        if not (size.isascii() and size.isdecimal() and len(size) < 20):
            raise self._damaged(at, f"{name!r} of {size} bytes")
        more = block.type == tarfile.GNUTYPE_SPARSE and self._block[_SPARSE_FOLLOWS]
        while more:
            data = self._read(self._at, _BLOCK)
            self._at += _BLOCK
            more = len(data) == _BLOCK and data[_MORE_FOLLOWS]
        block.name, block.size, block.offset_data = name, int(size), self._at
        sparse = block.type == tarfile.GNUTYPE_SPARSE or any(
            key.startswith("GNU.sparse.") for key in said
        )
        if block.isreg() or block.type not in tarfile.SUPPORTED_TYPES:  # links have no data
            self._at += _padded(block.size)
            if self._at >= sys.maxsize:
                raise self._damaged(at, f"{name!r} of {size} bytes")
        self._name, self._end = name, min(self._at, block.offset_data + block.size)
        return _Header(block, sparse)

    def refuse_more(self) -> None:
        """SourceError if zeros are not the end: a hole, as of a download that lacks a piece, looks
        like the end of an archive, too.
        """
        at = self._at + _BLOCK
        while piece := self._read(at, _MOST_PADDING):
            at += len(piece)
            if piece.count(0) < len(piece) or at - self._at > _MOST_PADDING:
                raise SourceError(
                    f"{self._where} is damaged: zeros at byte {self._at:,}{self._behind()} end it, "
                    "but it goes on behind them; download it again, or if it was joined of "
                    "several tars, pack it anew"
                )

    def _read(self, at: int, size: int) -> bytes:
        """Bytes of the archive, fewer at its end."""
        at, stop = min(at, self._limit), min(at + size, self._limit)
        if self._stream.tell() != at:
            try:
                self._stream.seek(at)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return b""  # no file is so large: what leads there leads beyond the end
        return self._stream.read(stop - at)

    def _behind(self) -> str:
        return f", behind {self._name}," if self._name else ""

    def _damaged(self, at: int, why: str) -> SourceError:
        behind = self._behind().rstrip(",")
        return SourceError(
            f"{self._where} is damaged near byte {at:,}{behind}: {why}; download it again"
        )

    def _cut_short(self, why: str) -> SourceError:
        if isinstance(self._stream, io.IOBase):
            self._stream.seek(0, os.SEEK_END)
        stop = min(self._stream.tell(), self._limit)
        if stop < self._end:
            why = f"the data of its last file, {self._name}, go on to byte {self._end:,}"
        elif self._name:
            why += f", behind {self._name}"
        return SourceError(f"{self._where} is cut short at byte {stop:,}: {why}; download it again")


@dataclass(frozen=True)
class _Header:
    entry: tarfile.TarInfo
    sparse: bool


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> Iterator[tuple[str, str]]:
    """(keyword, value) of each `length keyword=value`; ValueError for anything else."""
    while data.strip(b"\0"):
        digits, _, _ = data[:_LENGTH].partition(b" ")
        size = whole_number(digits)
        key, equals, value = data[len(digits) + 1 : size].partition(b"=")
        if not (0 < size <= len(data) and key and equals and value.endswith(b"\n")):
            raise ValueError(data[:99])
        data = data[size:]
        yield _text(key), _text(value[:-1])


def iter_members(
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
    headers = _Headers(stream, where, start, size)
    while (header := headers.next()) is not None:
        if (passed := junk_in(header.entry.name)) is not None:
            if junk is not None:
                junk[passed] += 1
        elif not header.entry.isdir():
            member = _member(header, where)
            if isinstance(stream, Gunzip):
                stream.sum_up(member.offset, member.size)
            yield member
    headers.refuse_more()


_NOT_PLAIN = (
    (lambda header: header.entry.islnk(), "a hard link", "tar --hard-dereference"),
    (lambda header: header.entry.issym(), "a symbolic link", "tar --dereference"),
    (lambda header: header.sparse, "a sparse file", "tar without --sparse"),
    (lambda header: not header.entry.isreg(), "a device or a pipe", "without it"),
)


def _member(header: _Header, where: str) -> Member:
    for is_one, what, advice in _NOT_PLAIN:
        if is_one(header):
            raise SourceError(
                f"{where}: {header.entry.name} is {what}, not a plain file: pack the archive with "
                f"the files themselves ({advice})"
            )
    return Member(header.entry.name, header.entry.offset_data, header.entry.size)


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


@contextmanager
def scanned_tar(path: Path, scan: Scan) -> Iterator[tuple[Stream, int]]:
    """(stream of an archive, plain or in gzip, number of its container)."""
    if is_gzip(path):
        with scanned_gzip(path, scan.folder) as gunzip:
            yield gunzip, scan.container(path, "gzip")
    else:
        with path.open("rb") as stream:
            yield stream, scan.container(path, "tar")


def contents(path: Path, wanted: Callable[[Member], bool]) -> Iterator[tuple[Member, bytes]]:
    """Small files of a tar, plain or in gzip, with all that is in them, in one pass."""
    with Gunzip(path) if is_gzip(path) else path.open("rb") as stream:
        for member in iter_members(stream, str(path)):
            if not wanted(member):
                continue
            if member.size > _LARGEST:
                size = f"{member.size:,} bytes, expected at most {_LARGEST:,}"
                raise SourceError(f"{path}: {member.name} has {size}")
            if len(data := stream.read(member.size)) == member.size:  # else the walk says it
                yield member, data
        if isinstance(stream, Gunzip):
            stream.finish()


def first_members(path: Path, count: int = 1) -> Iterator[Member]:
    """The first files of a tar, plain or in gzip; none if it is no tar."""
    if not path.is_file() or not (is_tar(path) or is_gzip(path)):
        return
    with Gunzip(path) if is_gzip(path) else path.open("rb") as stream:
        try:
            yield from islice(iter_members(stream, str(path)), count)
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
        refuse_irregular(path)
    return [path for path in found if path.is_file()]


def images_of_class(
    members: Sequence[Member], where: str, outer: str = ""
) -> list[tuple[str, Member]]:
    """The files of a class by their names; SourceError if there are none, or two of a name.

    outer: the tar that they are in, if that is in another one.
    """
    if not members:
        raise SourceError(f"{where} is an empty class: download it again or leave it away")
    refuse_twice((member.base for member in members), where)
    inside = f"{outer}/" if outer else ""
    return [(m.base, Member(inside + m.name, m.offset, m.size)) for m in members]


def refuse_twice(names: Iterable[str], where: str) -> None:
    """SourceError for a name that comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SourceError(f"{where} has two files called {name}: rename or remove one")
        seen.add(name)
