"""Small pictures of stored samples, for reports: rebuilt from their planes, as WebP."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.format import manifest
from pipeline.format.beton import BetonReader
from pipeline.format.codec import stored
from pipeline.inspection.sheet import draw
from pipeline.planes.splitter import Splitter

SIDE = 96  # px
_QUALITY = 75


def pictures(directory: Path, split: str, numbers: list[int]) -> list[bytes]:
    """A WebP file for each of some samples of a split, by their numbers within its shards."""
    found = manifest.load(directory)
    prep = found.preparation
    readers = [BetonReader(directory / found.shard(split, k)) for k in range(prep.splits)]
    images = []
    for i in numbers:
        if prep.splits == 1:
            pixels = stored(readers[0], i, prep)
        else:
            pixels = Splitter(prep).rebuild(np.stack([stored(r, i, prep) for r in readers]))
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        images.append(_webp(image.convert("RGB"), SIDE))
    return images


def contact_sheet(directory: Path, scratch: Path) -> bytes:
    """The sheet of `spectral inspect --png` as WebP; scratch: a file that may be written."""
    draw(directory, scratch)
    with Image.open(scratch) as image:
        return _webp(image.convert("RGB"), max(image.size))


def _webp(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY)
    return file.getvalue()
