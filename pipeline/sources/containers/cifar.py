"""CIFAR-10 and CIFAR-100: the archives that their author publishes, or the folders in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError, first_few
from pipeline.sources.containers.labelled import Arrays, Labelled
from pipeline.sources.containers.pickles import load_pickle, text
from pipeline.sources.containers.tar import contents

_SIDE, _PIXELS = 32, 32 * 32 * 3  # px, and bytes of an image: planes red, green, blue


@dataclass(frozen=True)
class Variant:
    """One of the four archives, and the files in its folder.

    label_key: of the labels in a pickle. label_bytes: before the pixels of a record, the last
    of which is the label.
    """

    archive: str
    folder: str
    form: str
    train: tuple[str, ...]
    test: str
    names: str  # the file that names the classes
    names_key: str
    classes: int
    label_key: str = ""
    label_bytes: int = 0


_FIVE = tuple(f"data_batch_{i}" for i in range(1, 6))
PYTHON = (
    Variant(
        "cifar-10-python.tar.gz", "cifar-10-batches-py", "cifar-10-python", _FIVE,
        "test_batch", "batches.meta", "label_names", 10, label_key="labels",
    ),
    Variant(
        "cifar-100-python.tar.gz", "cifar-100-python", "cifar-100-python", ("train",),
        "test", "meta", "fine_label_names", 100, label_key="fine_labels",
    ),
)  # fmt: skip
BINARY = (
    Variant(
        "cifar-10-binary.tar.gz", "cifar-10-batches-bin", "cifar-10-binary",
        tuple(f"{name}.bin" for name in _FIVE), "test_batch.bin", "batches.meta.txt", "", 10,
        label_bytes=1,
    ),
    Variant(
        "cifar-100-binary.tar.gz", "cifar-100-binary", "cifar-100-binary",
        ("train.bin",), "test.bin", "fine_label_names.txt", "", 100,
        label_bytes=2,  # coarse, fine
    ),
)  # fmt: skip
VARIANTS = (*PYTHON, *BINARY)


def load(variant: Variant, path: Path) -> Arrays:
    """All of an archive or folder, in one pass; SourceError for what is missing or damaged."""
    names: list[str] = []
    found = {}
    for name, data in _files(path, variant):
        where = str(path / name) if path.is_dir() else f"{path}: {variant.folder}/{name}"
        if name == variant.names:
            names = _class_names(data, variant, where)
        else:
            split = "val" if name == variant.test else "train"
            pixels, labels = _content(data, variant, where)
            found[name] = Labelled(split, pixels, labels)
            found[name].check(variant.classes, where, ", one a row of pixels")
    order = (*variant.train, variant.test)
    there = found.keys() | ({variant.names} if names else set())
    if missing := sorted({*order, variant.names} - there):
        raise SourceError(f"{path} lacks {first_few(missing)} of CIFAR-{variant.classes}")
    paths = [path / name for name in (*order, variant.names)] if path.is_dir() else [path]
    return Arrays({name: found[name] for name in order}, names, paths)


def _files(path: Path, variant: Variant) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files that are there."""
    wanted = {*variant.train, variant.test, variant.names}
    if path.is_dir():
        for name in sorted(wanted):
            if (path / name).is_file():
                yield name, (path / name).read_bytes()
    else:
        inside = {(variant.folder, name) for name in wanted}
        known = lambda member: PurePosixPath(member.name).parts[-2:] in inside
        for member, data in contents(path, known):
            yield member.base, data


def _class_names(data: bytes, variant: Variant, where: str) -> list[str]:
    """By label."""
    if variant.names_key:
        names = _entry(load_pickle(data, where), variant.names_key, where)
    else:
        names = data.split()
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise SourceError(f"{where}: {variant.names_key} is no list of names")
    if len(names) != variant.classes or len(set(names)) != variant.classes:
        raise SourceError(
            f"{where} has {len(set(names))} different class names, expected {variant.classes}"
        )
    return [text(name) for name in names]


def _content(data: bytes, variant: Variant, where: str) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels (rows, 32, 32, 3) and labels of a file."""
    if variant.label_key:
        content = load_pickle(data, where)
        pixels = _matrix(content, where)
        labels = _numbers(_entry(content, variant.label_key, where), where)
    else:
        records = _records(data, variant, where)
        pixels = records[:, variant.label_bytes :]
        labels = records[:, variant.label_bytes - 1].tolist()
    return pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1), labels


def _matrix(content: dict[str, Any], where: str) -> NDArray[np.uint8]:
    data = _entry(content, "data", where)
    shape = getattr(data, "shape", None)
    if shape != (len(data), _PIXELS) or data.dtype != np.uint8:
        raise SourceError(
            f"{where}: data has shape {shape}, expected (rows, {_PIXELS}) of unsigned bytes"
        )
    return np.asarray(data, np.uint8)


def _records(data: bytes, variant: Variant, where: str) -> NDArray[np.uint8]:
    """(rows, label bytes + 3072)."""
    size = variant.label_bytes + _PIXELS
    if len(data) % size or not data:
        raise SourceError(
            f"{where} has {len(data):,} bytes, expected a multiple of {size}: it is not whole"
        )
    return np.frombuffer(data, np.uint8).reshape(-1, size)


def _numbers(values: Any, where: str) -> list[int]:
    found = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(found, list) or not all(isinstance(value, int) for value in found):
        raise SourceError(f"{where}: labels are no list of whole numbers")
    return found


def _entry(content: dict[str, Any], key: str, where: str) -> Any:
    if key not in content:
        raise SourceError(f"{where} has {first_few(sorted(content))}, expected also {key}")
    return content[key]
