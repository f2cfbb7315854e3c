"""Looks for sources and their files in folders: the one that is meant, what is missing."""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.sources.junk import visible

_FEW = 16
_NUMBER = re.compile(r"(.*?)(\d+)((?:-of-\d+)?\D*)\Z", re.DOTALL)
_TOTAL = re.compile(r"-of-(\d+)")
_FAR_APART = 50


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


def refuse_broken_link(path: Path) -> None:
    """SourceError for a link to nothing, as a cache of the hub has them without its blobs."""
    if path.is_symlink() and not path.exists():
        raise SourceError(
            f"{path} is a broken link (to {path.readlink()}): download it again, or copy what it "
            "links to with it (cp -L)"
        )


def natural(name: str) -> list[int | str]:
    """A key that sorts the numbers in names as numbers: 2 before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


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
