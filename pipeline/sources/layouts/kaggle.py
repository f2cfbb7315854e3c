"""ImageNet as Kaggle hands it out: val lies flat, a CSV says what it shows."""

import csv
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.sources.classes import class_names
from pipeline.sources.find import subfolders
from pipeline.sources.layouts.folders import (
    add_class_folders,
    add_flat,
    check_beside,
    class_folder_names,
    wnid_of,
)
from pipeline.sources.scan import Scan, Source

SOLUTION = "LOC_val_solution.csv"


class Kaggle(Source):
    """`ILSVRC/Data/CLS-LOC/{train/<wnid>,val}` and LOC_val_solution.csv beside ILSVRC."""

    layout = "kaggle"
    accepts = (
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
        scan.track(tree)
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
            scan.track(solution)
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


def _read_solution(path: Path) -> dict[str, str]:
    """Wnid by image: the first word of PredictionString, `<wnid> <box>` once or more."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if lacking := sorted({"ImageId", "PredictionString"} - set(reader.fieldnames or ())):
            raise SourceError(f"{path} lacks the columns {first_few(lacking)}")
        pairs = ((row["ImageId"] or "", (row["PredictionString"] or "").split()) for row in reader)
        try:
            return wnid_of(path, ((image, words[:1]) for image, words in pairs))
        except csv.Error as error:
            raise SourceError(f"{path} is no CSV: {error}") from error
