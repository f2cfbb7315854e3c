"""WebDataset: shards whose files `<key>.jpg` and `<key>.cls` make a sample."""

import logging
import os
import re
from collections import Counter
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.sources.classes import numbered_classes
from pipeline.sources.containers.tar import first_members, iter_members, open_tar, tars_in
from pipeline.sources.find import gaps, natural, subfolders, visible_files
from pipeline.sources.layouts.wds_samples import looks_packed, samples
from pipeline.sources.scan import Scan, Source
from pipeline.sources.split_names import SPLIT_NAMES

_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])")
_LOOKED_AT = 1 << 16  # files of a tar, to find out whether they are samples
log = logging.getLogger(__name__)


class WebDataset(Source):
    """Tars of samples. Labels: the numbers in `.cls` or `.txt`, or `label` or `cls` in `.json`."""

    layout = "webdataset"
    accepts = (
        "WebDataset: a folder with *.tar of <key>.{jpg,png,webp,…} and <key>.{cls,json,txt}; train "
        "or val in the names of the tars, or of the folders train/ and val/ (neither: all train)"
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """The first tar has files that belong to images, in any order."""
        for shard in _shards(root)[:1]:
            names = [member.name for member in first_members(shard, 1)]
            if names and not names[0].endswith(".tar"):
                return looks_packed(member.name for member in first_members(shard, _LOOKED_AT))
        return False

    def scan(self, scan: Scan) -> None:
        """Train, then val; shards by their numbers; samples as packed."""
        for folder in (self.root, *subfolders(self.root)):
            scan.track(folder)
        if other := _left_out(self.root):
            log.warning("%s: left out, as they are no shards: %s", self.root, first_few(other))
        counts: Counter[int] = Counter()
        for split, shards in _by_split(self.root).items():
            if missing := gaps([os.path.relpath(shard, self.root) for shard in shards]):
                log.warning("%s: shards are missing: %s", self.root, first_few(missing))
            for shard in shards:
                _scan_shard(shard, split, self.root, scan, counts)
        scan.finish(numbered_classes(counts, self.root))


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
            f"{root}: some tars are named after train or val, these are not: {first_few(unknown)}; "
            "rename them or move them away"
        )
    if test := [shard.name for shard, split in split_of.items() if split == "test"]:
        log.warning("%s: the test split is left out: %s", root, first_few(test))
    for shard, split in split_of.items():
        if split in found:
            found[split].append(shard)
    if not any(found.values()):
        raise SourceError(f"{root} has no tars of train or val; {WebDataset.accepts}")
    return found


def _split_of(path: str) -> str | None:
    names = _SPLIT.findall(path.lower())
    return SPLIT_NAMES[names[-1]] if names else None


def _scan_shard(shard: Path, split: str, root: Path, scan: Scan, counts: Counter[int]) -> None:
    """List the samples of a shard. counts: of each label so far, which give the ranks: sorting
    the names of a class over all shards would take them all into memory.
    """
    file = scan.container(shard, "tar")
    with open_tar(shard) as stream:
        members = list(iter_members(stream, str(shard), junk=scan.junk))
        found = samples(members, stream.fileno(), shard)
    stem = os.path.relpath(shard, root)[: -len(".tar")]
    stem = stem.removeprefix(f"{split}/")
    for sample in found:
        name, label = f"{stem}/{sample.key}", sample.label
        scan.add(split, str(label), name, file, sample.image, counts[label])
        counts[label] += 1
