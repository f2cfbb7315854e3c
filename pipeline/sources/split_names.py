"""Finds out which folders are splits and which are classes, or says why that cannot be told."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pipeline.errors import SourceError, first_few
from pipeline.sources.find import subfolders
from pipeline.sources.junk import visible

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Within a name, as in `seg_train`, `test_set`, `TrainImages`, `train2017`
_WORD = re.compile(
    r"(?<![a-z])(train|training|trainset|trn|val|valid|validation|valset|test|testing|testset|tst"
    r"|eval|evaluation|dev|holdout)(?![a-z])"
)
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_LOOKED_AT = 16
log = logging.getLogger(__name__)


def split_of(name: str) -> str | None:
    """The split that a name stands for, in any case; None if it is none of those well known."""
    return SPLIT_NAMES.get(name.lower())


def split_folders(root: Path) -> dict[str, Path]:
    """Folders of train, val and test by split; none where the folders of `root` are its classes."""
    folders = subfolders(root)
    found: dict[str, list[str]] = {}
    for folder in folders:
        if split := split_of(folder.name):
            found.setdefault(split, []).append(folder.name)
    if not found:
        _refuse_likely_splits(root, folders)
        _refuse_splits_within(root, folders)
        _warn_of_likeness(root, folders)
        return {}
    if stray := [folder.name for folder in folders if not split_of(folder.name)]:
        named = sorted(name for names in found.values() for name in names)
        if "train" not in found and not any(_of_folders(root / name) for name in named):
            return {}  # a class may be called `Test`: no split has its images without classes
        raise _neither(root, named, stray)
    for split, names in found.items():
        if len(names) > 1:
            raise SourceError(
                f"{root} has {first_few(names)}, which are all {split}: move them together, or all "
                "but one away"
            )
    if "train" not in found:
        (name,) = next(iter(found.values()))
        raise SourceError(
            f"{root} has {name}/ but no train/: if {name} is a class, put all into a folder train: "
            f"{root / 'train' / name}"
        )
    return {split: root / found[split][0] for split in ("train", "val", "test") if split in found}


def of_test(splits: dict[str, Path], classes: list[str]) -> dict[str, Path]:
    """The splits, where test is val if there is no other one; left out if it has no classes."""
    test = splits.get("test")
    if test is None:
        return splits
    rest = {split: folder for split, folder in splits.items() if split != "test"}
    if not {folder.name for folder in subfolders(test)} & set(classes):
        log.warning("%s has no folders of classes: left out", test)
        return rest
    if "val" in rest:
        return splits
    log.warning("%s is val, as there is no other one", test)
    return rest | {"val": test}


def refuse_split_tars(where: object, stems: Iterable[str]) -> None:
    """SourceError if all tars that should be classes are called as splits."""
    stems = list(stems)
    if stems and all(map(split_of, stems)):
        raise _split_tars(where, stems)


def refuse_split_tar(where: object, stem: str, members: Iterable[str]) -> None:
    """SourceError if a tar that should be a class is called as a split and holds folders."""
    if _WORD.search(_words(stem)) and len({PurePosixPath(name).parent for name in members}) > 1:
        raise _split_tars(where, [stem])


def _split_tars(where: object, stems: list[str]) -> SourceError:
    return SourceError(
        f"{where} has {first_few([f'{stem}.tar' for stem in stems])}: named as splits, not "
        "classes. Unpack each into a folder of its name (train, val), and name the folder that "
        "holds these"
    )


def _refuse_likely_splits(root: Path, folders: list[Path]) -> None:
    """`seg_train`, `seg_test`, `imagenet21k_train`: folders of classes, not classes."""
    likely = [f.name for f in folders if _WORD.search(_words(f.name)) and _of_folders(f)]
    if likely:
        raise SourceError(
            f"{root} has {first_few(likely)}: {'it looks' if len(likely) == 1 else 'they look'} "
            "like splits, not classes. Call them train, val and test (a folder of links will do), "
            "or name one with --source. If they are classes, put all into a folder train: "
            f"{root / 'train' / likely[0]}"
        )


def _refuse_splits_within(root: Path, folders: list[Path]) -> None:
    """`images/train`, or `cat/train` and `cat/test`: val and test would be trained on."""
    for folder in folders[:_LOOKED_AT]:
        inner = [f.name for f in subfolders(folder) if split_of(f.name)]
        if len({split_of(name) for name in inner}) > 1:
            raise SourceError(
                f"{root}: {folder.name} holds {first_few(inner)}, which are splits. If the classes "
                f"are in these, use --source {folder}; splits of each class have to be outside, as "
                f"{root / 'train' / '<class>'}"
            )


def _warn_of_likeness(root: Path, folders: list[Path]) -> None:
    """Folders that hold the same folders are rarely classes: years, domains, folds."""
    inner = [frozenset(f.name for f in subfolders(folder)) for folder in folders[:_LOOKED_AT]]
    if len(inner) > 1 and len(set(inner)) == 1 and len(inner[0]) > 1 and _of_folders(folders[0]):
        log.warning(
            "%s: its folders %s are taken for classes, but each holds %s; if these are the "
            "classes, name one of those with --source",
            root, first_few([folder.name for folder in folders]), first_few(sorted(inner[0])),
        )  # fmt: skip


def _words(name: str) -> str:
    return _HUMP.sub(" ", name).lower()


def _of_folders(folder: Path) -> bool:
    """It holds folders, and nothing beside them."""
    entries = visible(folder)
    return bool(entries) and all(entry.is_dir() for entry in entries)


def _neither(root: Path, named: list[str], stray: list[str]) -> SourceError:
    return SourceError(
        f"{root} has {' and '.join(named)} and also {first_few(stray)}: not known what they are. "
        "Move them away, or name a folder that holds only train, val and test; if all of them are "
        f"classes, put them into a folder train: {root / 'train' / named[0]}"
    )
