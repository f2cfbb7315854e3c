"""The MNIST family (MNIST, Fashion-MNIST, KMNIST) in idx files, gzipped or not."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.sources.base import Source
from pipeline.sources.find import few_subfolders, only
from pipeline.sources.index import Scan

CLASSES = 10
_CHUNK = 1 << 20  # bytes
_GZIP = b"\x1f\x8b"
_PREFIX = {"train": "train", "val": "t10k"}
_DIMENSIONS = {"images": 3, "labels": 1}


@dataclass(frozen=True)
class _Header:
    """Dimensions of the array that follows; `size` in bytes, `start` where it begins."""

    dimensions: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return prod(self.dimensions)

    @property
    def start(self) -> int:
        """Bytes of the header."""
        return 4 + 4 * len(self.dimensions)


class Idx(Source):
    """`train-images-idx3-ubyte[.gz]` and the three files that belong to it."""

    layout = "idx"
    looks_like = (
        "a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte "
        "and t10k-labels-idx1-ubyte, with or without .gz"
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the training images, in the folder or where torchvision puts them."""
        return bool(_folders(root))

    def scan(self, scan: Scan) -> None:
        """Classes are the numbers 0 to 9; t10k is val."""
        folder = only(self.root, _folders(self.root))
        scan.saw(folder)
        for split in _PREFIX:
            _add(
                scan, split, _required(folder, split, "images"), _required(folder, split, "labels")
            )
        scan.finish([str(label) for label in range(CLASSES)])


def read_rows(path: Path) -> NDArray[np.uint8]:
    """All pixels of a file: (rows, height x width)."""
    rows = _read(path, "images")
    return rows.reshape(len(rows), -1)


def _folders(root: Path) -> list[Path]:
    places = [root, root / "raw", *(folder / "raw" for folder in few_subfolders(root))]
    return [folder for folder in places if _file(folder, "train", "images")]


def _file(folder: Path, split: str, what: str) -> Path | None:
    """A file under one of the names that it goes by; what is inflated already comes first."""
    stem, end = f"{_PREFIX[split]}-{what}", f"idx{_DIMENSIONS[what]}-ubyte"
    names = [f"{stem}{dot}{end}{gz}" for gz in ("", ".gz") for dot in ("-", ".")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _required(folder: Path, split: str, what: str) -> Path:
    path = _file(folder, split, what)
    if path is None:
        name = f"{_PREFIX[split]}-{what}-idx{_DIMENSIONS[what]}-ubyte"
        raise SourceError(f"{folder} lacks {name} (or {name}.gz)")
    return path


def _add(scan: Scan, split: str, images: Path, labels: Path) -> None:
    rows, height, width = _checked(images).dimensions
    found = _read(labels, "labels").tolist()
    if len(found) != rows:
        raise SourceError(f"{labels} has {len(found)} labels, expected {rows}, as {images} has")
    scan.saw(labels)
    file = scan.container(images, "array", form="idx", shape=(height, width, 1))
    seen = [0] * CLASSES
    for row, label in enumerate(found):
        if label >= CLASSES:
            raise SourceError(f"{labels}: row {row} has label {label}, expected 0 to {CLASSES - 1}")
        scan.add(
            split, str(label), str(row), file,
            member=f"{images.name} row {row}", offset=row, size=height * width, rank=seen[label],
        )  # fmt: skip
        seen[label] += 1


def _checked(path: Path) -> _Header:
    """The header of an image file, once all the pixels that it promises were seen."""
    with _opened(path) as file:
        header = _header(file, path, "images")
        found = 0
        while chunk := file.read(_CHUNK):
            found += len(chunk)
    _refuse_size(path, header, found)
    return header


def _read(path: Path, what: str) -> NDArray[np.uint8]:
    """The whole array."""
    with _opened(path) as file:
        header = _header(file, path, what)
        chunks, found = [], 0
        while found <= header.size and (chunk := file.read(_CHUNK)):
            chunks.append(chunk)
            found += len(chunk)
    _refuse_size(path, header, found)
    return np.frombuffer(b"".join(chunks), np.uint8).reshape(header.dimensions)


def _header(file: BinaryIO, path: Path, what: str) -> _Header:
    count = _DIMENSIONS[what]
    magic, expected = file.read(4), bytes((0, 0, 8, count))
    if magic != expected:
        raise SourceError(
            f"{path} begins with {magic.hex(' ') or 'nothing'}, expected {expected.hex(' ')}: "
            f"not the {what} of an idx file"
        )
    sizes = file.read(4 * count)
    if len(sizes) < 4 * count:
        raise SourceError(f"{path} ends within its header, expected {4 + 4 * count} bytes")
    header = _Header(tuple(np.frombuffer(sizes, ">u4").tolist()))
    if not header.size:
        raise SourceError(f"{path} has dimensions {header.dimensions}: it is empty")
    return header


def _refuse_size(path: Path, header: _Header, found: int) -> None:
    if found != header.size:
        so_far = "more than " if found > header.size else ""
        raise SourceError(
            f"{path} holds {so_far}{min(found, header.size):,} bytes after its header, "
            f"expected {header.size:,}, for {header.dimensions}"
        )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, inflated where its content is gzip, whatever its name says."""
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP
        raw.seek(0)
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(f"{path} is damaged or not whole: {error}") from error
