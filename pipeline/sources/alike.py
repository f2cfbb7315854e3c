"""Class names that are the same to people and different to the machine: found, and said."""

import unicodedata
from collections.abc import Iterable

from pipeline.errors import SourceError, some

_OTHERWISE = (
    "written with other bytes (macOS takes letters and accents apart, NFD): rename all alike, as "
    "`convmv -f utf8 -t utf8 --nfc -r --notest FOLDER` does"
)


def refuse_unknown(folder: object, names: Iterable[str], known: Iterable[str], where: str) -> None:
    """SourceError for classes that `where` lacks; some may look as if they were there."""
    known = set(known)
    if not (stray := sorted(set(names) - known)):
        return
    said = f"{folder} has classes that {where} lacks: {some(stray)}"
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
