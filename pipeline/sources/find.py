"""Looks for sources and their files in folders: the one that is meant, what is missing."""

import re
import stat
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.sources.junk import visible

_FEW = 16
_NUMBER = re.compile(r"(.*?)(\d+)((?:-of-\d+)?\D*)\Z", re.DOTALL | re.ASCII)
_TOTAL = re.compile(r"-of-([0-9]+)")
_FAR_APART = 50


_HEAD = 10  # bytes that tell how a file is packed
_PACKED = (
    (re.compile(rb"\xfd7zXZ\0"), "xz", "xz -d"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "bzip2", "bzip2 -d"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "zstd", "zstd -d"),
    (re.compile(rb"\x04\x22\x4d\x18"), "lz4", "lz4 -d"),
    (re.compile(rb"\x1f\x9d"), "compress", "uncompress"),
    (re.compile(rb"PK\x03\x04"), "zip", "unzip"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "7-Zip", "7z x"),
    (re.compile(rb"Rar!\x1a\x07"), "RAR", "unrar x"),
)


def packed(head: bytes) -> str | None:
    """What to say of a file in a form that is not read, which its first bytes tell."""
    for magic, what, how in _PACKED:
        if magic.match(head):
            return (
                f"is packed with {what}, which is not read: unpack it ({how}), and where that "
                "gives a tar, use that or a .tar.gz of it"
            )
    return None


def refuse_packed(paths: Sequence[Path]) -> None:
    """SourceError for files in a form that is not read; nothing but their heads is looked at."""
    for path in (path for path in paths if path.is_file()):
        with path.open("rb") as file:
            if said := packed(file.read(_HEAD)):
                raise SourceError(f"{path} {said}")


def single(root: Path, found: Sequence[Path]) -> Path:
    """The single path that was found; SourceError where the user has to choose."""
    if len(found) > 1:
        raise SourceError(f"{root} holds {first_few([str(p) for p in found])}: name one of them")
    return found[0]


def subfolders(root: Path) -> list[Path]:
    """Sorted folders in `root`, without hidden ones and the like; none if it is a file."""
    if not root.is_dir():
        return []
    found = [entry.name for entry in visible(root) if entry.is_dir()]
    return [root / name for name in sorted(found)]


def few_subfolders(root: Path) -> list[Path]:
    """Those that may hold a source; none where there are so many that they are classes."""
    found = subfolders(root)
    return found if len(found) <= _FEW else []


def visible_files(root: Path) -> list[Path]:
    """Sorted files of a folder but hidden ones and the like."""
    return sorted(root / entry.name for entry in visible(root) if entry.is_file())


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "no regular file but a pipe"),
    (stat.S_ISSOCK, "no regular file but a socket"),
    (stat.S_ISBLK, "no regular file but a block device"),
    (stat.S_ISCHR, "no regular file but a character device"),
)


def irregular(path: Path) -> str:
    """What something is that is no file, in words."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return f"a broken link (to {path.readlink()})" if path.is_symlink() else "gone"
    return next((what for is_one, what in _KINDS if is_one(mode)), "no regular file")


def refuse_irregular(path: Path) -> None:
    """SourceError for a link to nothing, as a cache of the hub has them without its blobs, and for
    a pipe or a device: to open it may take for ever.
    """
    if path.is_symlink() and not path.exists():
        raise SourceError(
            f"{path} is {irregular(path)}: download it again, or copy what it links to with it "
            "(cp -L)"
        )
    if path.exists() and not path.is_file() and not path.is_dir():
        raise SourceError(f"{path} is {irregular(path)}: put the file itself there")


def natural(name: str) -> list[int | str]:
    """A key that sorts the numbers in names as numbers: 2 before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]


def gaps(names: Sequence[str]) -> list[str]:
    """Names that numbered ones lack: those between the first and the last number, and of
    `-00003-of-00294` all of them. Numbers that lie far apart are no sequence.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for name in names:
        if match := _NUMBER.match(name):
            found.setdefault((match[1], match[3]), set()).add(match[2])
    missing: list[str] = []
    for (before, after), digits in found.items():
        width = min(map(len, digits)) if any(d[0] == "0" for d in digits) else 0
        numbers = set(map(int, digits))
        total = _TOTAL.match(after)
        wanted = range(int(total[1])) if total else range(min(numbers), max(numbers))
        if len(wanted) < _FAR_APART * len(numbers):
            lacking = (number for number in wanted if number not in numbers)
            missing += [f"{before}{number:0{width}d}{after}" for number in lacking]
    return sorted(missing, key=natural)
