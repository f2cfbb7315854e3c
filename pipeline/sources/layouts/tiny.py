"""Tiny-ImageNet as it unpacks, and with its val sorted into class folders as people do."""

from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.sources.classes import class_names, refuse_unknown
from pipeline.sources.containers.folder import image_files
from pipeline.sources.find import few_subfolders, single, subfolders, visible_files
from pipeline.sources.junk import visible
from pipeline.sources.layouts.folders import add_flat, check_beside, class_folder_names, wnid_of
from pipeline.sources.scan import Scan, Source

ANNOTATIONS = "val_annotations.txt"
BOXES = "_boxes.txt"  # <wnid>_boxes.txt, one in each folder of train
IMAGES = "images"


class TinyImageNet(Source):
    """`train/<wnid>/images/*` and `val/images/*` with val_annotations.txt.

    Val may as well be sorted: `val/<wnid>/*`, `val/<wnid>/images/*` or `val/images/<wnid>/*`, with
    the annotations, against which it is then checked, or without.
    """

    layout = "tiny-imagenet"
    accepts = (
        f"a folder with train/<wnid>/images/<image>, val/images/<image>, val/{ANNOTATIONS}; val "
        "may be sorted into folders of classes"
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By images/ in a class folder and val as it was, or by the boxes of a class."""
        return bool(_trees(root))

    def scan(self, scan: Scan) -> None:
        """Labels are the sorted wnids."""
        tree = single(self.root, _trees(self.root))
        wnids = class_folder_names(tree / "train", scan.junk)
        _check_wnids(tree, wnids)
        check_beside(tree)
        scan.track(tree)
        _add_sorted(scan, tree / "train", wnids, "train")
        if (tree / "val").is_dir():
            _add_val(scan, tree / "val", wnids)
        scan.finish(wnids, class_names(tree))


def _trees(root: Path) -> list[Path]:
    return [tree for tree in (root, *few_subfolders(root)) if _is_tiny(tree)]


def _is_tiny(tree: Path) -> bool:
    first = next(iter(subfolders(tree / "train")), None)
    if first is None:
        return False
    val = tree / "val"
    told = (val / ANNOTATIONS).is_file() or (val / IMAGES).is_dir()
    return (first / f"{first.name}{BOXES}").is_file() or (told and (first / IMAGES).is_dir())


def _check_wnids(tree: Path, wnids: list[str]) -> None:
    """wnids.txt, where it is there, names the classes."""
    path = tree / "wnids.txt"
    if path.is_file():
        named = set(path.read_text(encoding="utf-8").split())
        if differ := sorted(named ^ set(wnids)):
            raise SourceError(
                f"{path} and the folders in {tree / 'train'} differ: {first_few(differ)}"
            )


def _add_val(scan: Scan, val: Path, wnids: list[str]) -> None:
    """Flat, as it unpacks, or in one of the forms that people sort it into."""
    annotations, images = val / ANNOTATIONS, val / IMAGES
    beside = [folder.name for folder in subfolders(val) if folder.name != IMAGES]
    where, names = (val, beside) if beside else (images, [f.name for f in subfolders(images)])
    scan.track(annotations if annotations.is_file() else val)
    if not names:
        add_flat(scan, images, _read_annotations(annotations), wnids, annotations)
        return
    loose = [path.name for path in visible_files(where) if path.name != ANNOTATIONS]
    if beside and images.is_dir():
        loose += [f"{IMAGES}/{name}" for name in sorted(entry.name for entry in visible(images))]
    if loose:
        raise SourceError(
            f"{where} has folders of classes and beside them {first_few(loose)}: move these into "
            "the folders of their classes, or away"
        )
    refuse_unknown(where, names, wnids, "train")
    found = _add_sorted(scan, where, names, "val")
    if annotations.is_file():
        _check_sorted(where, found, _read_annotations(annotations), annotations)


def _add_sorted(scan: Scan, folder: Path, wnids: list[str], split: str) -> dict[str, str]:
    """Images of `folder/<wnid>/images`, or of `folder/<wnid>` where there is no images/; the wnid
    of each.
    """
    scan.track(folder)
    file = scan.container(folder, "folder")
    found: dict[str, str] = {}
    for wnid in wnids:
        inside = Path(wnid, IMAGES) if (folder / wnid / IMAGES).is_dir() else Path(wnid)
        if inside.name == IMAGES:
            _refuse_outside(folder / wnid, scan)
        images = image_files(folder, str(inside), scan, required=split == "train", but=BOXES)
        scan.add_class(wnid, images, file, split)
        found |= dict.fromkeys((name for name, _ in images), wnid)
    return found


def _refuse_outside(folder: Path, scan: Scan) -> None:
    """Images beside images/ would be left out in silence."""
    scan.track(folder)
    names = sorted(entry.name for entry in visible(folder))
    if stray := [n for n in names if n != IMAGES and not n.endswith(BOXES)]:
        raise SourceError(
            f"{folder} has {first_few(stray)} beside images/: move them away or into it"
        )


def _check_sorted(where: Path, found: dict[str, str], said: dict[str, str], path: Path) -> None:
    """SourceError where sorted images are not what the annotations say."""
    for name, wnid in found.items():
        if said.get(name, wnid) != wnid:
            raise SourceError(
                f"{where}: {name} lies in the folder of {wnid}, but {path} says {said[name]}: sort "
                "it anew"
            )
    if missing := sorted(said.keys() - found.keys()):
        raise SourceError(f"{where} lacks {first_few(missing)}, which {path} names")


def _read_annotations(path: Path) -> dict[str, str]:
    """Wnid by image: `<image>, <wnid>, <box>`, with tabs between."""
    if not path.is_file():
        raise SourceError(f"{path} is missing: the classes of val/images stand in it")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split("\t") for line in lines if line.strip())
    return wnid_of(path, ((words[0], words[1:2]) for words in pairs))
