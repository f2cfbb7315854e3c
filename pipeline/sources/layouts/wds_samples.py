"""Finds the samples of a WebDataset shard: which file is an image, which its label.

The rule of the format: a key ends at the first dot of a name, `<key>.jpg` and `<key>.cls` make a
sample. Two other ways to name files are about and are read where all files of a shard fit:
`<key>.input.jpg` with `<key>.output.cls`, and keys that have dots themselves.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.files import from_json, whole_number
from pipeline.sources.index import Member

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "avif")
LABELS = ("cls", "json", "cls2", "txt")  # the first that is there and says something counts
_ALIKE = ("cls", "json")  # where both are there, they have to agree
_SURE = ("cls", "cls2")  # whatever else is there: these are no images of a class
_EXPECTED = {"json": "JSON"}
MOST_CLASSES = 1 << 20
Files = list[tuple[str, Member]]  # with their suffixes


@dataclass(frozen=True)
class Sample:
    """An image of a shard."""

    key: str
    image: Member
    label: int


def looks_packed(names: Iterable[str]) -> bool:
    """Whether files of a tar are samples: there are files that belong to images."""
    images: set[str] = set()
    others: set[str] = set()
    for name in names:
        keys = {_first_dot(name)[0], _last_dot(name)[0]}
        kind = _kind(_first_dot(name)[1])
        if kind in _SURE:
            return True
        mine, theirs = (images, others) if kind in IMAGES else (others, images)
        if keys & theirs:
            return True
        mine |= keys
    return False


def samples(members: list[Member], descriptor: int, shard: Path) -> list[Sample]:
    """All of a shard, in the order of their first files; SourceError where they are not clear."""
    try:
        return _read(members, _first_dot, descriptor, shard)
    except SourceError as error:
        try:
            return _read(members, _last_dot, descriptor, shard)
        except SourceError:
            raise error from None


def _read(
    members: list[Member], parts: Callable[[str], tuple[str, str]], descriptor: int, shard: Path
) -> list[Sample]:
    """The samples if keys end where `parts` says."""
    found: dict[str, Files] = {}
    for member in members:
        key, suffix = parts(member.name)
        found.setdefault(key, []).append((suffix, member))
    found = {key: files for key, files in found.items() if _counts(files)}
    if not found:
        raise SourceError(f"{shard} has no samples: download it again or remove it")
    _refuse_several(found, IMAGES, "image", shard)
    _refuse_several(found, LABELS, "label", shard)
    plain = {kind for files in found.values() for kind, _ in files} & set(IMAGES)
    return [
        Sample(key, _image(key, files, bool(plain), shard), _label(key, files, descriptor, shard))
        for key, files in found.items()
    ]


def _counts(files: Files) -> bool:
    """Text alone is no sample."""
    kinds = {_kind(suffix) for suffix, _ in files}
    return bool(kinds & {*IMAGES, *LABELS} - {"txt"})


def _refuse_several(
    found: dict[str, Files], kinds: tuple[str, ...], what: str, shard: Path
) -> None:
    """Names within the suffix, as `input` in `input.jpg`, have to be the same in all samples."""
    if any(suffix in kinds for files in found.values() for suffix, _ in files):
        return  # `<key>.jpg` counts alone, `<key>.mask.png` is passed over
    stems: dict[str, str] = {}
    for files in found.values():
        for suffix, member in files:
            if _kind(suffix) in kinds:
                stems.setdefault(suffix.rpartition(".")[0], member.name)
    if len(stems) > 1:
        raise SourceError(
            f"{shard}: it is not clear which {what} of a sample is meant, as in "
            f"{first_few(sorted(stems.values()))}. Expected is one <key>.{kinds[0]}, where the key "
            "ends at the first dot of a name"
        )


def _image(key: str, files: Files, plain: bool, shard: Path) -> Member:
    found = [m for suffix, m in files if (suffix if plain else _kind(suffix)) in IMAGES]
    if len(found) > 1:
        raise SourceError(
            f"{shard}: two images of the key {key}: {first_few([member.name for member in found])}"
        )
    if not found:
        raise SourceError(
            f"{shard}: the key {key} has no image ({', '.join(IMAGES)}); a key ends at the first "
            "dot of a name"
        )
    return found[0]


def _label(key: str, files: Files, descriptor: int, shard: Path) -> int:
    said: list[tuple[int, str]] = []  # labels, and the files that say them
    for kind in LABELS:
        if said and kind not in _ALIKE:
            break
        found = [member for suffix, member in files if suffix == kind]
        found = found or [member for suffix, member in files if _kind(suffix) == kind]
        if len(found) > 1:
            names = first_few([member.name for member in found])
            raise SourceError(f"{shard}: two labels of the key {key}: {names}")
        for member in found:
            content = os.pread(descriptor, member.size, member.offset)
            try:
                label = _number(content, kind, f"{shard}: {member.name}")
            except SourceError:
                if not said:
                    raise
                continue  # what else may be in a `.json` beside a `.cls`
            if label is not None:
                said.append((label, member.name))
    if len({label for label, _ in said}) > 1:
        words = " and ".join(f"{name} says label {label}" for label, name in said)
        raise SourceError(f"{shard}: {words}: correct one of them, or pack the tar without it")
    if said:
        return said[0][0]
    raise SourceError(
        f"{shard}: the key {key} has no label: expected {key}.cls (or .cls2, .txt) with a whole "
        f'number, or {key}.json with "label" or "cls". If the tar holds the images of a class, '
        "pack it without other files"
    )


def _number(content: bytes, kind: str, where: str) -> int | None:
    """The number in a file; None if a `.json` says nothing of it or a `.txt` holds words."""
    try:
        value = from_json(content) if kind == "json" else whole_number(content)
    except ValueError as error:
        if kind == "txt":
            return None
        what = _EXPECTED.get(kind, "whole number")
        raise SourceError(f"{where} is no {what}: {content[:40]!r}") from error
    if isinstance(value, dict):
        both = {value[name] for name in ("label", "cls") if isinstance(value.get(name), int)}
        if len(both) > 1:
            raise SourceError(f"{where} says label {value['label']} and cls {value['cls']}")
        value = value.get("label", value.get("cls"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_CLASSES:
        raise SourceError(f"{where}: the label {value!r} is no number from 0 to {MOST_CLASSES - 1}")
    return value


def _kind(suffix: str) -> str:
    return suffix.rpartition(".")[2]


def _first_dot(name: str) -> tuple[str, str]:
    """(key, suffix) by the rule of the format; folders belong to the key."""
    names = _folders(name)
    base, _, suffix = names.pop().partition(".") if names else ("", "", "")
    return "/".join([*names, base]), suffix.lower()


def _last_dot(name: str) -> tuple[str, str]:
    """(key, suffix) where keys have dots."""
    names = _folders(name)
    base, _, suffix = names.pop().rpartition(".") if names else ("", "", "")
    return "/".join([*names, base or suffix]), suffix.lower() if base else ""


def _folders(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".", "..")]
