"""CIFAR-10, CIFAR-100 and the MNIST family in the files that their authors publish."""

from pathlib import Path, PurePosixPath
from typing import ClassVar

from pipeline.errors import SourceError, first_few
from pipeline.sources.containers import idx
from pipeline.sources.containers.array import load
from pipeline.sources.containers.cifar import BINARY, PYTHON, VARIANTS, Variant
from pipeline.sources.containers.tar import first_members
from pipeline.sources.find import few_subfolders, single
from pipeline.sources.index import Member
from pipeline.sources.scan import Scan, Source


class Mnist(Source):
    """`train-images-idx3-ubyte[.gz]` and the three files that belong to it."""

    layout = "idx"
    accepts = (
        "a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte "
        "and t10k-labels-idx1-ubyte, with or without .gz"
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the training images, in the folder or where torchvision puts them."""
        return bool(cls._folders(root))

    def scan(self, scan: Scan) -> None:
        """Classes are the numbers 0 to 9; t10k is val."""
        _add_all(scan, single(self.root, self._folders(self.root)), "idx")

    @staticmethod
    def _folders(root: Path) -> list[Path]:
        places = [root, root / "raw", *(folder / "raw" for folder in few_subfolders(root))]
        return [folder for folder in places if idx.find(folder, "train", "images")]


class _Cifar(Source):
    variants: ClassVar[tuple[Variant, ...]]

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the names of the archive or of its first member, or of files in the folder."""
        return any(variant in cls.variants for variant, _ in _cifars(root))

    def scan(self, scan: Scan) -> None:
        """Labels are the official numbers (fine ones of CIFAR-100), classes their names."""
        found = _cifars(self.root)
        if len({variant.classes for variant, _ in found}) > 1:
            paths = first_few([str(path) for _, path in found])
            raise SourceError(f"{self.root} holds CIFAR-10 and CIFAR-100: name one of {paths}")
        variant, path = next(pair for pair in found if pair[0] in self.variants)
        if self.root.is_dir():
            scan.track(self.root)
        _add_all(scan, path, variant.form)


class CifarPython(_Cifar):
    """The archives for Python: pickled dictionaries."""

    layout = "cifar-python"
    accepts = "cifar-10-python.tar.gz or cifar-100-python.tar.gz, or the folder that it unpacks to"
    variants = PYTHON


class CifarBinary(_Cifar):
    """The archives for other languages: records of a label and pixels."""

    layout = "cifar-binary"
    accepts = "cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, or the folder that it unpacks to"
    variants = BINARY


def _cifars(root: Path) -> list[tuple[Variant, Path]]:
    """All that lies at `root`, as archive or folder; of each variant the folder first."""
    if not root.is_dir():
        return [(v, root) for v in VARIANTS if v.archive == root.name] or _by_first_member(root)
    found = []
    for variant in VARIANTS:
        places = [root, root / variant.folder]
        unpacked = [folder for folder in places if _is_unpacked(folder, variant)]
        archive = [root / variant.archive] if (root / variant.archive).is_file() else []
        found += [(variant, path) for path in (unpacked + archive)[:1]]
    return found


def _is_unpacked(folder: Path, variant: Variant) -> bool:
    """Two of three files are enough: the scan says which one is missing."""
    marks = (variant.train[0], variant.test, variant.names)
    return sum((folder / name).is_file() for name in marks) >= 2


def _by_first_member(path: Path) -> list[tuple[Variant, Path]]:
    """An archive under another name is known by the folder of its first member."""
    first = next(first_members(path), None)
    parts = PurePosixPath(first.name).parts if first else ()
    return [(v, path) for v in VARIANTS if v.folder in parts]


def _add_all(scan: Scan, path: Path, form: str) -> None:
    """Rows are numbered through all files of a split: the same ids in all variants."""
    found = load(path, form)
    for looked_at in found.paths:
        scan.track(looked_at)
    file = scan.container(path, "array", form=form, shape=found.shape)
    number, seen = {"train": 0, "val": 0}, {"train": [0] * 100, "val": [0] * 100}
    for name, images in found.files.items():
        split = images.split
        for row, label in enumerate(images.labels):
            member = Member(f"{name}/{row}", size=images.pixels[row].size)
            key, rank = found.classes[label], seen[split][label]
            scan.add(split, key, str(number[split]), file, member, rank)
            number[split] += 1
            seen[split][label] += 1
    scan.finish(found.classes)
