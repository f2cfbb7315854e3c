"""idx files, gzipped or not, as the MNIST family has them: images, and labels beside them."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.sources.containers.labelled import Arrays, Labelled

CLASSES = [str(label) for label in range(10)]
SPLITS = {"train": "train", "val": "t10k"}
_CHUNK = 1 << 20  # bytes
_GZIP = b"\x1f\x8b"
_DIMENSIONS = {"images": 3, "labels": 1}


def find(folder: Path, split: str, what: str) -> Path | None:
    """A file under one of the names that it goes by; what is inflated already comes first."""
    stem, end = f"{SPLITS[split]}-{what}", f"idx{_DIMENSIONS[what]}-ubyte"
    names = [f"{stem}{dot}{end}{gz}" for gz in ("", ".gz") for dot in ("-", ".")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def load(folder: Path) -> Arrays:
    """All of a folder; SourceError for what is missing, damaged or does not fit together."""
    found, paths = {}, []
    for split in SPLITS:
        images, labels = _required(folder, split, "images"), _required(folder, split, "labels")
        pixels = _read(images, "images")[..., None]
        found[images.name] = Labelled(split, pixels, _read(labels, "labels").tolist())
        found[images.name].check(len(CLASSES), str(labels), f", as {images} has")
        paths += [images, labels]
    return Arrays(found, CLASSES, paths)


def _required(folder: Path, split: str, what: str) -> Path:
    path = find(folder, split, what)
    if path is None:
        name = f"{SPLITS[split]}-{what}-idx{_DIMENSIONS[what]}-ubyte"
        raise SourceError(f"{folder} lacks {name} (or {name}.gz)")
    return path


def _read(path: Path, what: str) -> NDArray[np.uint8]:
    """The whole array."""
    with _opened(path) as file:
        dimensions = _dimensions(file, path, what)
        size = prod(dimensions)
        chunks, found = [], 0
        while found <= size and (chunk := file.read(_CHUNK)):
            chunks.append(chunk)
            found += len(chunk)
    if found != size:
        so_far = "more than " if found > size else ""
        raise SourceError(
            f"{path} holds {so_far}{min(found, size):,} bytes after its header, expected {size:,}, "
            f"for {dimensions}"
        )
    return np.frombuffer(b"".join(chunks), np.uint8).reshape(dimensions)


def _dimensions(file: BinaryIO, path: Path, what: str) -> tuple[int, ...]:
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
    dimensions = tuple(np.frombuffer(sizes, ">u4").tolist())
    if not prod(dimensions):
        raise SourceError(f"{path} has dimensions {dimensions}: it is empty")
    return dimensions


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, inflated where its content is gzip, whatever its name says."""
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP
        raw.seek(0)
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(
                f"{path} is damaged or not whole, as gzip: download it again"
            ) from error
