"""CIFAR-10 and CIFAR-100 in the archives that their author publishes, or unpacked."""

import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from pipeline.errors import SourceError, some
from pipeline.sources import cifar_files
from pipeline.sources.base import Source
from pipeline.sources.cifar_files import BINARY, DAMAGE, PIXELS, PYTHON, VARIANTS, Variant
from pipeline.sources.index import Scan

SHAPE = (32, 32, 3)


@dataclass(frozen=True)
class _Found:
    """Where a variant lies: `path` is its archive, or its folder."""

    variant: Variant
    path: Path

    def where(self, name: str) -> str:
        """One of its files, for people."""
        return f"{self.path}: {self.inner(name)}" if self.inner(name) else str(self.path / name)

    def inner(self, name: str) -> str:
        """A file's path within the archive; empty if it is unpacked."""
        return "" if self.path.is_dir() else f"{self.variant.folder}/{name}"


class _Cifar(Source):
    variants: ClassVar[tuple[Variant, ...]]

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the names of the archive or of its first member, or of files in the folder."""
        return any(found.variant in cls.variants for found in _find(root))

    def scan(self, scan: Scan) -> None:
        """Labels are the official numbers (fine ones of CIFAR-100), classes their names."""
        everything = _find(self.root)
        if len({found.variant.classes for found in everything}) > 1:
            paths = some([str(found.path) for found in everything])
            raise SourceError(f"{self.root} holds CIFAR-10 and CIFAR-100: name one of {paths}")
        found = next(found for found in everything if found.variant in self.variants)
        names, labels = _read_all(found)
        for split, files in (("train", found.variant.train), ("val", (found.variant.test,))):
            _add(scan, found, split, {file: labels[file] for file in files}, names)
        if self.root.is_dir():
            scan.saw(self.root)
        scan.finish(names)


class CifarPython(_Cifar):
    """The archives for Python: pickled dictionaries."""

    layout = "cifar-python"
    looks_like = (
        "cifar-10-python.tar.gz or cifar-100-python.tar.gz, or the folder that it unpacks to"
    )
    variants = PYTHON


class CifarBinary(_Cifar):
    """The archives for other languages: records of a label and pixels."""

    layout = "cifar-binary"
    looks_like = (
        "cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, or the folder that it unpacks to"
    )
    variants = BINARY


def _find(root: Path) -> list[_Found]:
    """All that lies at `root`; of each variant the folder before the archive."""
    if not root.is_dir():
        return [_Found(v, root) for v in VARIANTS if v.archive == root.name] or _sniff(root)
    found = []
    for variant in VARIANTS:
        places = [root, root / variant.folder]
        unpacked = [folder for folder in places if _is_unpacked(folder, variant)]
        archive = [root / variant.archive] if (root / variant.archive).is_file() else []
        found += [_Found(variant, path) for path in (unpacked + archive)[:1]]
    return found


def _is_unpacked(folder: Path, variant: Variant) -> bool:
    """Two of three files are enough: the scan says which one is missing."""
    marks = (variant.train[0], variant.test, variant.names)
    return sum((folder / name).is_file() for name in marks) >= 2


def _sniff(path: Path) -> list[_Found]:
    """An archive under another name is known by the folder of its first member."""
    try:
        with tarfile.open(path) as tar:
            first = tar.next()
    except (*DAMAGE, OSError):
        return []
    parts = PurePosixPath(first.name).parts if first else ()
    return [_Found(v, path) for v in VARIANTS if v.folder in parts]


def _read_all(found: _Found) -> tuple[list[str], dict[str, list[int]]]:
    """Names of the classes, and the labels in each file, in one pass over an archive."""
    variant = found.variant
    wanted = {*variant.train, variant.test, variant.names}
    names: list[str] = []
    labels: dict[str, list[int]] = {}
    for name, data in cifar_files.files(found.path, variant, wanted):
        if name == variant.names:
            names = cifar_files.class_list(data, variant, found.where(name))
        else:
            labels[name] = cifar_files.labels(data, variant, found.where(name))
    if missing := sorted(wanted - labels.keys() - ({variant.names} if names else set())):
        raise SourceError(f"{found.path} lacks {some(missing)} of CIFAR-{variant.classes}")
    return names, labels


def _add(
    scan: Scan, found: _Found, split: str, files: dict[str, list[int]], names: list[str]
) -> None:
    """Rows are numbered through all files of a split: the same ids in all variants."""
    number, seen = 0, [0] * len(names)
    for name, labels in files.items():
        inner = found.inner(name)
        path = found.path if inner else found.path / name
        file = scan.container(path, "array", inner=inner, form=found.variant.form, shape=SHAPE)
        for row, label in enumerate(labels):
            scan.add(
                split, names[label], str(number), file,
                member=f"{name} row {row}", offset=row, size=PIXELS, rank=seen[label],
            )  # fmt: skip
            number += 1
            seen[label] += 1
