"""Files that name wnids in, names of classes for people out; and classes that are numbers."""

from collections.abc import Collection
from pathlib import Path

from pipeline.errors import SourceError

FILES = ("LOC_synset_mapping.txt", "words.txt")
_MANY, _SHARE = 1 << 16, 4  # more classes than _MANY should not be _SHARE times what is used


def class_names(folder: Path) -> dict[str, str] | None:
    """Names by wnid, of a file of `FILES` in `folder`; None where there is none."""
    for path in (folder / name for name in FILES):
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            pairs = (line.split(maxsplit=1) for line in lines)
            return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
    return None


def numbered_classes(labels: Collection[int], where: object) -> list[str]:
    """Names of the classes 0 to the highest label; SourceError if hardly any of many is used."""
    count = max(labels, default=-1) + 1
    if count > _MANY and count > _SHARE * len(set(labels)):
        raise SourceError(
            f"{where} has labels up to {count - 1:,}, but only {len(set(labels)):,} different "
            f"ones: a network would get {count:,} outputs. Number the classes from 0 without gaps"
        )
    return [str(label) for label in range(count)]
