"""Folders of image files, one folder a class, which most people have; and a val that lies flat."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.sources.classes import class_names, refuse_unknown
from pipeline.sources.containers.folder import image_files
from pipeline.sources.find import subfolders
from pipeline.sources.index import Member
from pipeline.sources.junk import visible
from pipeline.sources.scan import Scan, Source
from pipeline.sources.split_names import of_test, split_folders, split_of

log = logging.getLogger(__name__)


class ClassFolders(Source):
    """`{train,val,test}/<class>/*`, or `<class>/*`, which is all train. Labels: sorted names."""

    layout = "class-folders"
    accepts = (
        "a folder with {train,val,test}/<class>/<image> (also training, valid, validation, "
        "testing, in any case), or with <class>/<image> (all train)"
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Any folder that holds a folder: the last resort, which says itself what is amiss."""
        return bool(subfolders(root))

    def scan(self, scan: Scan) -> None:
        """Sorted by split, class, then path within the class folder."""
        levels = split_folders(self.root)
        folders = levels or {"train": self.root}
        scan.track(self.root)
        classes = class_folder_names(folders["train"])
        _refuse_level_above(folders["train"], classes)
        for split, folder in of_test(folders, classes).items():
            add_class_folders(scan, folder, split, classes, str(folders["train"]))
        scan.finish(classes, _known_names(self.root, classes) if levels else None)


def add_class_folders(
    scan: Scan, folder: Path, split: str, classes: Sequence[str], where: str
) -> None:
    """The images of `folder`/<class>, class by class. classes: all, in their order, of `where`."""
    names = set(class_folder_names(folder, scan.junk))
    refuse_unknown(folder, names, classes, where)
    scan.track(folder)
    file = scan.container(folder, "folder")
    for name in (name for name in classes if name in names):
        images = image_files(folder, name, scan, required=split == "train")
        scan.add_class(name, images, file, split)


def _refuse_level_above(folder: Path, classes: list[str]) -> None:
    """All folders of a data set would become one class."""
    inner = folder / classes[0]
    entries = visible(inner)
    if len(classes) == 1 and entries and all(entry.is_dir() for entry in entries):
        raise SourceError(
            f"{folder} has one class, {inner.name}, of folders alone: "
            f"{first_few(sorted(entry.name for entry in entries))}. If those are the classes or "
            f"splits, use --source {inner}"
        )


_FLAT_VAL = (
    ". If it is ImageNet's val: the official tar beside its devkit is read as it is, and so is "
    "Kaggle's tree, whose CSV says the classes"
)


def class_folder_names(folder: Path, junk: Counter[str] | None = None) -> list[str]:
    """Sorted names of the folders in `folder`; SourceError for anything beside them.

    junk: counts what is passed over.
    """
    entries = visible(folder, junk)
    names = sorted(e.name for e in entries if e.is_dir())
    if not names:
        flat = _FLAT_VAL if entries and split_of(folder.name) == "val" else ""
        raise SourceError(f"{folder} has no class folders; {ClassFolders.accepts}{flat}")
    if files := sorted(e.name for e in entries if not e.is_dir()):
        raise SourceError(
            f"{folder} has files beside its class folders: {first_few(files)}; "
            "each image belongs into the folder of its class, move the rest away"
        )
    return names


def _known_names(root: Path, classes: list[str]) -> dict[str, str] | None:
    """Names of wnids, where a file beside train/ has them."""
    names = class_names(root) or {}
    return names if any(key in names for key in classes) else None


def check_beside(tree: Path) -> None:
    """Nothing else may lie beside train and val: it would be left out in silence."""
    names = {folder.name for folder in subfolders(tree)}
    if stray := sorted(names - {"train", "val", "test"}):
        raise SourceError(f"{tree} has {first_few(stray)} beside train and val: move them away")
    if (tree / "test").is_dir():
        log.warning("%s has no labels: left out", tree / "test")


def add_flat(
    scan: Scan, folder: Path, class_of: dict[str, str], wnids: list[str], said: Path, end: str = ""
) -> None:
    """Val images that lie in one folder; class_of: by file name without `end`; `said` says so."""
    if not folder.is_dir():
        raise SourceError(f"{folder} is missing, but {said} names its images")
    of_class: dict[str, list[tuple[str, Member]]] = {wnid: [] for wnid in wnids}
    refuse_unknown(said, class_of.values(), wnids, "train")
    images: dict[str, str] = {}
    found = image_files(folder, "", scan)
    scan.refuse_irregular()  # a link to nothing is there, but no image
    for name, _ in found:
        other = images.setdefault(name.removesuffix(end), name)
        if other != name:
            raise SourceError(f"{folder} has {other} and {name}, one image in {said}: remove one")
    if unsaid := sorted(images.keys() - class_of.keys()):
        raise SourceError(f"{said} does not say the class of {first_few(unsaid)} in {folder}")
    if missing := sorted(class_of.keys() - images.keys()):
        raise SourceError(f"{folder} lacks {first_few(missing)}, which {said} names")
    for stem, name in images.items():
        of_class[class_of[stem]].append((name, Member(name)))
    file = scan.container(folder, "folder")
    for wnid, found in of_class.items():
        scan.add_class(wnid, found, file, "val")


def wnid_of(path: Path, pairs: Iterator[tuple[str, list[str]]]) -> dict[str, str]:
    """One wnid for each image."""
    found: dict[str, str] = {}
    for image, wnid in pairs:
        if not wnid:
            raise SourceError(f"{path}: no class for {image}")
        if found.setdefault(image, wnid[0]) != wnid[0]:
            raise SourceError(f"{path}: {image} is of class {found[image]} and of {wnid[0]}")
    return found
