"""WebDataset: shards whose consecutive files `<key>.jpg` and `<key>.cls` make a sample."""

import json
import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.base import Source
from pipeline.sources.find import natural, subfolders, visible_files
from pipeline.sources.index import Scan, some
from pipeline.sources.tar import Member, first_members, open_tar, tars_in, walk

IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = ("cls", "json")  # the first that is there counts
MOST_CLASSES = 1 << 20
_SPLIT = re.compile(r"(?<![a-z])(train|val|validation|valid|test)(?![a-z])")
_SPLITS = {"validation": "val", "valid": "val"}
log = logging.getLogger(__name__)


@dataclass
class Sample:
    """What a shard has of a key."""

    image: Member | None = None
    label: int | None = None


class WebDataset(Source):
    """Tars of samples. Labels: the numbers in `.cls`, or `label` or `cls` in `.json`."""

    layout = "webdataset"
    looks_like = (
        "WebDataset: a folder with *.tar of <key>.{jpg,png,webp} and <key>.{cls,json}; train or "
        "val in the names of the tars, or of the folders train/ and val/ (neither: all train)"
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """The first tar starts with an image and its label, in any order."""
        first = [member for shard in _shards(root)[:1] for member in first_members(shard, 8)]
        suffixes = {_parts(member.name)[1] for member in first}
        return bool(suffixes & set(IMAGES)) and bool(suffixes & set(LABELS))

    def scan(self, scan: Scan) -> None:
        """Train, then val; shards by their numbers; samples as packed."""
        for folder in (self.root, *subfolders(self.root)):
            scan.saw(folder)
        if other := _left_out(self.root):
            log.warning("%s: left out, as they are no shards: %s", self.root, some(other))
        counts: Counter[int] = Counter()
        for split, shards in _by_split(self.root).items():
            for shard in shards:
                _scan_shard(shard, split, self.root, scan, counts)
        scan.finish([str(number) for number in range(max(counts) + 1)])


def _shards(root: Path) -> list[Path]:
    """Tars of a folder, and of folders in it whose names are those of splits."""
    folders = [f for f in subfolders(root) if _SPLIT.fullmatch(f.name.lower())]
    found = [path for folder in (root, *folders) for path in tars_in(folder)]
    return sorted(found, key=lambda path: natural(str(path)))


def _left_out(root: Path) -> list[str]:
    """Files, and folders that hold tars, which no shard comes from."""
    shards = set(_shards(root))
    folders = {shard.parent for shard in shards} | {root}
    files = [path for folder in sorted(folders) for path in visible_files(folder)]
    other = [path for path in files if path not in shards]
    other += [path for path in subfolders(root) if path not in folders and tars_in(path)]
    return [os.path.relpath(path, root) for path in other]


def _by_split(root: Path) -> dict[str, list[Path]]:
    """Shards of train and of val."""
    found: dict[str, list[Path]] = {"train": [], "val": []}
    split_of = {shard: _split_of(os.path.relpath(shard, root)) for shard in _shards(root)}
    if not any(split_of.values()):
        return {"train": list(split_of)}
    if unknown := [shard.name for shard, split in split_of.items() if split is None]:
        raise SourceError(
            f"{root}: some tars are named after train or val, these are not: {some(unknown)}; "
            "rename them or move them away"
        )
    if test := [shard.name for shard, split in split_of.items() if split == "test"]:
        log.warning("%s: the test split is left out: %s", root, some(test))
    for shard, split in split_of.items():
        if split in found:
            found[split].append(shard)
    if not any(found.values()):
        raise SourceError(f"{root} has no tars of train or val; {WebDataset.looks_like}")
    return found


def _split_of(path: str) -> str | None:
    names = _SPLIT.findall(path.lower())
    return _SPLITS.get(names[-1], names[-1]) if names else None


def _scan_shard(shard: Path, split: str, root: Path, scan: Scan, counts: Counter[int]) -> None:
    """List the samples of a shard. counts: of each label so far, which give the ranks: sorting
    the names of a class over all shards would take them all into memory.
    """
    file = scan.container(shard, "bytes")
    samples: dict[str, Sample] = {}
    with open_tar(shard) as stream:
        for member in walk(stream, str(shard), junk=scan.junk):
            _take(member, samples, stream.fileno(), shard)
    if not samples:
        raise SourceError(f"{shard} has no samples: download it again or remove it")
    stem = os.path.relpath(shard, root)[: -len(".tar")]
    stem = stem.removeprefix(f"{split}/")
    for key, sample in samples.items():
        member, label = _complete(key, sample, shard)
        place = {"offset": member.offset, "size": member.size, "rank": counts[label]}
        counts[label] += 1
        scan.add(split, str(label), f"{stem}/{key}", file, member=member.name, **place)


def _take(member: Member, samples: dict[str, Sample], descriptor: int, shard: Path) -> None:
    """Put a file to its sample; suffixes that are neither image nor label are passed over."""
    key, suffix = _parts(member.name)
    if suffix not in IMAGES and suffix not in LABELS:
        if suffix.rpartition(".")[2] in (*IMAGES, *LABELS):  # `a.seg.png` is of `a`, which must be
            samples.setdefault(key, Sample())
        return
    sample = samples.setdefault(key, Sample())
    if suffix in IMAGES:
        if sample.image is not None:
            raise SourceError(
                f"{shard}: two images of the key {key}: {sample.image.name}, {member.name}"
            )
        sample.image = member
    elif suffix == LABELS[0] or sample.label is None:
        content = os.pread(descriptor, member.size, member.offset)
        label = _label(content, suffix, f"{shard}: {member.name}")
        sample.label = sample.label if label is None else label


def _label(content: bytes, suffix: str, where: str) -> int | None:
    """The number in a `.cls` or `.json` file; None if a `.json` says nothing of it."""
    try:
        value = json.loads(content) if suffix == "json" else int(content)
    except ValueError as error:
        raise SourceError(f"{where} is no {_EXPECTED[suffix]}: {content[:40]!r}") from error
    if isinstance(value, dict):
        value = value.get("label", value.get("cls"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_CLASSES:
        raise SourceError(f"{where}: the label {value!r} is no number from 0 to {MOST_CLASSES - 1}")
    return value


_EXPECTED = {"cls": "whole number", "json": "JSON"}


def _complete(key: str, sample: Sample, shard: Path) -> tuple[Member, int]:
    if sample.image is None:
        raise SourceError(
            f"{shard}: the key {key} has no image ({', '.join(IMAGES)}); a key ends at the first "
            "dot of a name"
        )
    if sample.label is None:
        raise SourceError(
            f"{shard}: the key {key} has no label: expected {key}.cls with a number, or "
            f'{key}.json with "label" or "cls"'
        )
    return sample.image, sample.label


def _parts(name: str) -> tuple[str, str]:
    """(key, suffix): the base name ends at its first dot; folders belong to the key."""
    names = [part for part in name.split("/") if part not in ("", ".", "..")]
    base, _, suffix = names.pop().partition(".") if names else ("", "", "")
    return "/".join([*names, base]), suffix.lower()
