"""Folders of image files, one folder a class: what most people have."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SourceError, some
from pipeline.sources.classes import class_names, refuse_unknown
from pipeline.sources.containers.folder import image_files
from pipeline.sources.find import subfolders
from pipeline.sources.junk import visible
from pipeline.sources.levels import of_test, split_folders, split_of
from pipeline.sources.scan import Scan, Source


class ClassFolders(Source):
    """`{train,val,test}/<class>/*`, or `<class>/*`, which is all train. Labels: sorted names."""

    layout = "class-folders"
    looks_like = (
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
        scan.saw(self.root)
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
    scan.saw(folder)
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
            f"{some(sorted(entry.name for entry in entries))}. If those are the classes or splits, "
            f"use --source {inner}"
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
        raise SourceError(f"{folder} has no class folders; {ClassFolders.looks_like}{flat}")
    if files := sorted(e.name for e in entries if not e.is_dir()):
        raise SourceError(
            f"{folder} has files beside its class folders: {some(files)}; "
            "each image belongs into the folder of its class, move the rest away"
        )
    return names


def _known_names(root: Path, classes: list[str]) -> dict[str, str] | None:
    """Names of wnids, where a file beside train/ has them."""
    names = class_names(root) or {}
    return names if any(key in names for key in classes) else None
