"""Several places where a source may lie in, the one that is meant out."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.index import some
from pipeline.sources.junk import is_junk

_FEW = 16


def only(root: Path, found: Sequence[Path]) -> Path:
    """The single path that was found; SourceError where the user has to choose."""
    if len(found) > 1:
        raise SourceError(f"{root} holds {some([str(p) for p in found])}: name one of them")
    return found[0]


def subfolders(root: Path) -> list[Path]:
    """Sorted folders in `root`, without hidden ones and the like; none if it is a file."""
    if not root.is_dir():
        return []
    found = [e.name for e in os.scandir(root) if e.is_dir() and not is_junk(e.name)]
    return [root / name for name in sorted(found)]


def few_subfolders(root: Path) -> list[Path]:
    """Those that may hold a source; none where there are so many that they are classes."""
    found = subfolders(root)
    return found if len(found) <= _FEW else []


def visible_files(root: Path) -> list[Path]:
    """Sorted files of a folder but hidden ones and the like."""
    return sorted(p for p in root.iterdir() if p.is_file() and not is_junk(p.name))


def natural(name: str) -> list[int | str]:
    """A key that sorts the numbers in names as numbers: 2 before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
