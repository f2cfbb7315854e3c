"""ImageNet-1K as image-net.org hands it out: two tars, and a devkit that says what val shows."""

import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.files import whole_number
from pipeline.sources.classes import class_names
from pipeline.sources.containers.matlab import Value, table
from pipeline.sources.containers.tar import contents, iter_members, open_tar, refuse_twice
from pipeline.sources.find import refuse_irregular
from pipeline.sources.layouts.class_tars import scan_inner_tars
from pipeline.sources.scan import Scan, Source

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
LEAVES = 1000  # ids above are groups of classes
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Devkit:
    """`wnids` by ILSVRC id, `names` by wnid, `truth`: ILSVRC ids of the val images by name."""

    wnids: dict[int, str]
    names: dict[str, str]
    truth: list[int]


class IlsvrcTars(Source):
    """The tars of ILSVRC 2012. Labels: sorted wnids, not the ids of the devkit."""

    layout = "ilsvrc-tars"
    accepts = f"a folder with {TRAIN}, {VAL} and {DEVKIT} (train alone needs only the first)"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """One of the two tars is there."""
        return (root / TRAIN).is_file() or (root / VAL).is_file()

    def scan(self, scan: Scan) -> None:
        """Train, then val, as packed."""
        train, val = self.root / TRAIN, self.root / VAL
        for name in (TRAIN, VAL, DEVKIT):
            refuse_irregular(self.root / name)
        if not train.is_file():
            raise SourceError(f"{self.root} has {VAL} but no {TRAIN}: download it, too{_FROM}")
        devkit = self._devkit(needed=val.is_file())
        scan.track(self.root)
        file = scan.container(train, "tar")
        with open_tar(train) as stream:
            classes = scan_inner_tars(stream, train, scan, file)
        if devkit is not None and val.is_file():
            _scan_val(val, devkit, scan)
        else:
            log.warning("%s has no %s: all images are train", self.root, VAL)
        names = class_names(self.root) if devkit is None else devkit.names
        scan.finish(sorted(classes), names)

    def _devkit(self, *, needed: bool) -> Devkit | None:
        path = self.root / DEVKIT
        if path.is_file():
            return read_devkit(path)
        if needed:
            raise SourceError(
                f"{self.root} has no {DEVKIT}, which says what the images in {VAL} show: download "
                f"it{_FROM}, or move {VAL} away to go without val"
            )
        return None


_FROM = " from image-net.org (ILSVRC 2012, after registering)"


def _scan_val(path: Path, devkit: Devkit, scan: Scan) -> None:
    """The line of the ground truth is the place of an image among the sorted names."""
    with open_tar(path) as stream:
        members = list(iter_members(stream, str(path), junk=scan.junk))
    refuse_twice((member.base for member in members), str(path))
    if len(members) != len(devkit.truth):
        raise SourceError(
            f"{path} has {len(members):,} images, {TRUTH} in {DEVKIT} {len(devkit.truth):,} lines: "
            "both have to be complete, download them again"
        )
    key_of = dict(zip(sorted(m.base for m in members), _keys(devkit), strict=True))
    file = scan.container(path, "tar")
    for member in members:
        scan.add("val", key_of[member.base], member.base, file, member)


def _keys(devkit: Devkit) -> list[str]:
    if unknown := sorted(set(devkit.truth) - set(devkit.wnids)):
        raise SourceError(
            f"{DEVKIT}: {TRUTH} has the class {unknown[0]}, which {META} does not have"
        )
    return [devkit.wnids[number] for number in devkit.truth]


def read_devkit(path: Path) -> Devkit:
    """The devkit from its archive, which stays packed."""
    files = {m.base: data for m, data in contents(path, lambda m: m.base in (META, TRUTH))}
    try:
        rows = [_synset(row) for row in table(files[META], "synsets")]
        truth = [whole_number(line) for line in files[TRUTH].split()]
    except KeyError as error:
        raise SourceError(f"{path} lacks {error.args[0]}: download it again{_FROM}") from error
    except ValueError as error:
        raise SourceError(
            f"{path} cannot be read, as {META} or {TRUTH} in it is damaged: download it "
            f"again{_FROM}"
        ) from error
    leaves = [row for row in rows if row[0] <= LEAVES]
    return Devkit(
        {number: wnid for number, wnid, _ in leaves}, {w: words for _, w, words in leaves}, truth
    )


def _synset(row: dict[str, Value]) -> tuple[int, str, str]:
    number, wnid, words = row["ILSVRC2012_ID"], row["WNID"], row["words"]
    texts = isinstance(wnid, str) and isinstance(words, str)
    if not (texts and isinstance(number, float) and number.is_integer()):
        raise ValueError(f"a synset of {number}, {wnid}, {words}")
    return int(number), str(wnid), str(words)
