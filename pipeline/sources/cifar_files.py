"""A file of a CIFAR archive in, its labels or pixels out, checked."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError, some
from pipeline.sources.pickles import load_pickle, text

PIXELS = 32 * 32 * 3  # bytes of an image: planes red, green, blue
DAMAGE = (EOFError, tarfile.TarError, zlib.error, gzip.BadGzipFile)
_LARGEST_FILE = 1 << 30  # bytes; the largest of theirs has 154 million


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


def files(path: Path, variant: Variant, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files that are in a folder or archive, one pass over it."""
    if path.is_dir():
        for name in sorted(wanted):
            if (path / name).is_file():
                yield name, (path / name).read_bytes()
        return
    inner = {(variant.folder, name) for name in wanted}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                tail = PurePosixPath(member.name).parts[-2:]
                if member.isfile() and tail in inner:
                    yield tail[1], _extracted(tar, member, path)
    except DAMAGE as error:
        raise SourceError(
            f"{path} is damaged or not whole, expected {variant.archive}: {error}"
        ) from error


def read_rows(path: Path, inner: str, form: str) -> NDArray[np.uint8]:
    """The pixels of a file, or of the file `inner` of an archive: (rows, 3072)."""
    variant = next(v for v in VARIANTS if v.form == form)
    where = f"{path}: {inner}" if inner else str(path)
    name = PurePosixPath(inner or path.name).name
    for _, data in files(path if inner else path.parent, variant, {name}):
        return pixels(data, variant, where)
    raise SourceError(f"{where} is no longer there")


def class_list(data: bytes, variant: Variant, where: str) -> list[str]:
    """Names of the classes, by label."""
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


def labels(data: bytes, variant: Variant, where: str) -> list[int]:
    """Checked against the pixels and against the number of classes."""
    if variant.label_key:
        content = load_pickle(data, where)
        rows = len(_matrix(content, where))
        found = _numbers(_entry(content, variant.label_key, where), where)
    else:
        records = _records(data, variant, where)
        rows, found = len(records), records[:, variant.label_bytes - 1].tolist()
    if len(found) != rows:
        raise SourceError(f"{where} has {len(found)} labels, expected {rows}, one a row of pixels")
    for row, label in enumerate(found):
        if not 0 <= label < variant.classes:
            raise SourceError(
                f"{where}: row {row} has label {label}, expected 0 to {variant.classes - 1}"
            )
    return found


def pixels(data: bytes, variant: Variant, where: str) -> NDArray[np.uint8]:
    """(rows, 3072): the planes of each image."""
    if variant.label_key:
        return _matrix(load_pickle(data, where), where)
    return _records(data, variant, where)[:, variant.label_bytes :]


def _extracted(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if member.size > _LARGEST_FILE:
        raise SourceError(
            f"{path}: {member.name} has {member.size:,} bytes, expected at most {_LARGEST_FILE:,}"
        )
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    return file.read()


def _matrix(content: dict[str, Any], where: str) -> NDArray[np.uint8]:
    data = _entry(content, "data", where)
    shape = getattr(data, "shape", None)
    if shape != (len(data), PIXELS) or data.dtype != np.uint8:
        raise SourceError(
            f"{where}: data has shape {shape}, expected (rows, {PIXELS}) of unsigned bytes"
        )
    return np.asarray(data, np.uint8)


def _records(data: bytes, variant: Variant, where: str) -> NDArray[np.uint8]:
    """(rows, label bytes + 3072)."""
    size = variant.label_bytes + PIXELS
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
        raise SourceError(f"{where} has {some(sorted(content))}, expected also {key}")
    return content[key]
