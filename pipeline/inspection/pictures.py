"""Small pictures of stored samples, for reports: rebuilt from their planes, as WebP."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.format import manifest
from pipeline.format.beton import BetonReader
from pipeline.format.codec import decode_plane, decode_whole
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
            pixels = decode_whole(readers[0].payload(i), prep.codec, readers[0].shape(i))
        else:
            shape = prep.plane_shape
            planes = [decode_plane(r.payload(i), prep.codec, shape) for r in readers]
            pixels = Splitter(prep).rebuild(np.stack(planes))
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
