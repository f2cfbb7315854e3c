"""Names of classes: those that only look alike, those for people, and numbers."""

import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from pipeline.errors import SourceError, first_few

FILES = ("LOC_synset_mapping.txt", "words.txt")  # that say what wnids are called
_MANY, _SHARE = 1 << 16, 4  # more classes than _MANY should not be _SHARE times what is used
_OTHERWISE = (
    "written with other bytes (macOS takes letters and accents apart, NFD): rename all alike, as "
    "`convmv -f utf8 -t utf8 --nfc -r --notest FOLDER` does"
)


def refuse_unknown(folder: object, names: Iterable[str], known: Iterable[str], where: str) -> None:
    """SourceError for classes that `where` lacks; some may look as if they were there."""
    known = set(known)
    if not (stray := sorted(set(names) - known)):
        return
    said = f"{folder} has classes that {where} lacks: {first_few(stray)}"
    if {_composed(name) for name in stray} & {_composed(name) for name in known}:
        said += f". Some look alike but are {_OTHERWISE}"
    raise SourceError(said)


def refuse_look_alikes(root: object, names: Iterable[str]) -> None:
    """SourceError for two classes whose names are the same to people."""
    seen: dict[str, str] = {}
    for name in names:
        if seen.setdefault(_composed(name), name) != name:
            raise SourceError(
                f"{root} has two classes that look alike, {name}: they are {_OTHERWISE}"
            )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


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
