"""ImageNet as Kaggle hands it out: val lies flat, a CSV says what it shows."""

import csv
import logging
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import SourceError, some
from pipeline.sources.classes import class_names, refuse_unknown
from pipeline.sources.containers.folder import image_files
from pipeline.sources.find import subfolders
from pipeline.sources.index import Member
from pipeline.sources.layouts.folders import add_class_folders, class_folder_names
from pipeline.sources.scan import Scan, Source

SOLUTION = "LOC_val_solution.csv"
log = logging.getLogger(__name__)


class Kaggle(Source):
    """`ILSVRC/Data/CLS-LOC/{train/<wnid>,val}` and LOC_val_solution.csv beside ILSVRC."""

    layout = "kaggle"
    looks_like = (
        f"a folder with ILSVRC/Data/CLS-LOC/{{train/<wnid>,val}} and {SOLUTION}, or a folder in it"
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the path of train."""
        return _kaggle_tree(root) is not None

    def scan(self, scan: Scan) -> None:
        """Labels are the sorted wnids."""
        tree = _kaggle_tree(self.root)
        assert tree is not None  # it was recognised
        wnids = class_folder_names(tree / "train")
        check_beside(tree)
        scan.saw(tree)
        add_class_folders(scan, tree / "train", "train", wnids, "train")
        if subfolders(tree / "val"):  # somebody has sorted them into class folders
            add_class_folders(scan, tree / "val", "val", wnids, "train")
        else:
            self._add_val(scan, tree, wnids)
        mapping = _above(tree, "LOC_synset_mapping.txt")
        scan.finish(wnids, class_names(mapping.parent) if mapping else None)

    def _add_val(self, scan: Scan, tree: Path, wnids: list[str]) -> None:
        solution = _above(tree, SOLUTION)
        if solution is None:
            raise SourceError(f"{SOLUTION}, the classes of {tree / 'val'}, is not beside ILSVRC/")
        if self.root.absolute() in solution.parents:
            scan.saw(solution)
        add_flat(scan, tree / "val", _read_solution(solution), wnids, solution, ".JPEG")


def _kaggle_tree(root: Path) -> Path | None:
    places = [root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC", root / "CLS-LOC"]
    if root.absolute().name == "CLS-LOC" or (root / SOLUTION).is_file():
        places.append(root)
    return next((tree for tree in places if (tree / "train").is_dir()), None)


def _above(tree: Path, name: str) -> Path | None:
    """A file in the tree, or in one of the three folders above: Data, ILSVRC, what holds it."""
    whole = tree.absolute()
    places = (folder / name for folder in (whole, *whole.parents[:3]))
    return next((path for path in places if path.is_file()), None)


def check_beside(tree: Path) -> None:
    """Nothing else may lie beside train and val: it would be left out in silence."""
    names = {folder.name for folder in subfolders(tree)}
    if stray := sorted(names - {"train", "val", "test"}):
        raise SourceError(f"{tree} has {some(stray)} beside train and val: move them away")
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
    for name, _ in image_files(folder, "", scan):
        other = images.setdefault(name.removesuffix(end), name)
        if other != name:
            raise SourceError(f"{folder} has {other} and {name}, one image in {said}: remove one")
    if unsaid := sorted(images.keys() - class_of.keys()):
        raise SourceError(f"{said} does not say the class of {some(unsaid)} in {folder}")
    if missing := sorted(class_of.keys() - images.keys()):
        raise SourceError(f"{folder} lacks {some(missing)}, which {said} names")
    for stem, name in images.items():
        of_class[class_of[stem]].append((name, Member(name)))
    file = scan.container(folder, "folder")
    for wnid, found in of_class.items():
        scan.add_class(wnid, found, file, "val")


def _read_solution(path: Path) -> dict[str, str]:
    """Wnid by image: the first word of PredictionString, `<wnid> <box>` once or more."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if lacking := sorted({"ImageId", "PredictionString"} - set(reader.fieldnames or ())):
            raise SourceError(f"{path} lacks the columns {some(lacking)}")
        pairs = ((row["ImageId"] or "", (row["PredictionString"] or "").split()) for row in reader)
        try:
            return wnid_of(path, ((image, words[:1]) for image, words in pairs))
        except csv.Error as error:
            raise SourceError(f"{path} is no CSV: {error}") from error


def wnid_of(path: Path, pairs: Iterator[tuple[str, list[str]]]) -> dict[str, str]:
    """One wnid for each image."""
    found: dict[str, str] = {}
    for image, wnid in pairs:
        if not wnid:
            raise SourceError(f"{path}: no class for {image}")
        if found.setdefault(image, wnid[0]) != wnid[0]:
            raise SourceError(f"{path}: {image} is of class {found[image]} and of {wnid[0]}")
    return found
