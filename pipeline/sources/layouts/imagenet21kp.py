"""ImageNet-21K-P as image-net.org offers it, already processed: three folders, or a tar of them."""

import logging
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

from pipeline.errors import SourceError, first_few
from pipeline.sources.classes import class_names, refuse_unknown
from pipeline.sources.containers.tar import (
    first_members,
    images_of_class,
    iter_members,
    scanned_tar,
)
from pipeline.sources.find import few_subfolders, single, subfolders
from pipeline.sources.index import Member
from pipeline.sources.layouts.folders import add_class_folders, class_folder_names
from pipeline.sources.scan import Scan, Source

SPLITS = {"imagenet21k_train": "train", "imagenet21k_val": "val"}
SMALL = "imagenet21k_small_classes"
TRAIN, VAL = SPLITS
_Place = tuple[str, str]  # split, class
log = logging.getLogger(__name__)


class ImageNet21KP(Source):
    """`imagenet21k_{train,val}/<wnid>/*`; the small classes are left out. Labels: sorted wnids."""

    layout = "imagenet21k-p"
    accepts = f"a folder with {TRAIN}, {VAL} and {SMALL}, or the folder that holds it"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the names of the folders."""
        return bool(_trees(root))

    def scan(self, scan: Scan) -> None:
        """Train, then val, each sorted by class and name."""
        tree = single(self.root, _trees(self.root))
        names = [folder.name for folder in subfolders(tree)]
        _refuse_half(tree, names)
        if other := sorted(set(names) - set(SPLITS)):
            log.warning("%s: left out: %s", tree, first_few(other))
        scan.track(tree)
        classes = class_folder_names(tree / TRAIN)
        for name, split in SPLITS.items():
            add_class_folders(scan, tree / name, split, classes, TRAIN)
        scan.finish(classes, class_names(tree))


class ImageNet21KPTar(Source):
    """The same in one archive, plain or in gzip."""

    layout = "imagenet21k-p-tar"
    accepts = f"a .tar or .tar.gz of {TRAIN}, {VAL} and {SMALL}"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the folder of its first file."""
        names = {*SPLITS, SMALL}
        return any(
            names & set(PurePosixPath(member.name).parts[:-2]) for member in first_members(root, 3)
        )

    def scan(self, scan: Scan) -> None:
        """As packed."""
        done: dict[_Place, None] = {}
        left_out = 0
        with scanned_tar(self.root, scan) as (stream, file):
            members = iter_members(stream, str(self.root), junk=scan.junk)
            for place, group in groupby(self._placed(members), key=lambda pair: pair[0]):
                if place is None:
                    left_out += sum(1 for _ in group)
                    continue
                split, key = place
                where = f"{self.root}: {key} in {split}"
                if place in done:
                    raise SourceError(f"{where} comes in two places: pack it sorted by folders")
                done[place] = None
                images = images_of_class([member for _, member in group], where)
                scan.add_class(key, images, file, split)
        if left_out:
            log.warning("%s: left out: %d files of %s or of no class", self.root, left_out, SMALL)
        present = {split for split, _ in done}
        _refuse_half(self.root, [name for name, split in SPLITS.items() if split in present])
        classes = sorted(key for split, key in done if split == "train")
        held = [key for split, key in done if split == "val"]
        refuse_unknown(f"{self.root}: {VAL}", held, classes, TRAIN)
        scan.finish(classes, class_names(self.root.parent))

    def _placed(self, members: Iterable[Member]) -> Iterator[tuple[_Place | None, Member]]:
        """Each file with its split and class; None if it is of the small classes, or of none."""
        for member in members:
            parts = PurePosixPath(member.name).parts
            at = next((i for i, part in enumerate(parts) if part in SPLITS or part == SMALL), None)
            if at is None or len(parts) < at + 3:
                yield None, member
            else:
                yield None if parts[at] == SMALL else (SPLITS[parts[at]], parts[at + 1]), member


def _trees(root: Path) -> list[Path]:
    places = (root, *few_subfolders(root))
    return [tree for tree in places if any((tree / n).is_dir() for n in (*SPLITS, SMALL))]


def _refuse_half(where: Path, names: Iterable[str]) -> None:
    """Val of 21K-P has been taken out of train: one without the other is another data set."""
    if missing := sorted(set(SPLITS) - set(names)):
        raise SourceError(
            f"{where} has no {first_few(missing)}: unpack or download it, too; to go without val, "
            f"use --source on {TRAIN} itself, with --classes all"
        )
