"""Small pictures of stored samples, for reports: rebuilt from their planes, as WebP."""

import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from pipeline.errors import SpectralError, describe
from pipeline.format import manifest
from pipeline.format.beton import BetonReader
from pipeline.format.codec import stored
from pipeline.inspection.sheet import draw
from pipeline.planes.splitter import Splitter

log = logging.getLogger(__name__)
SIDE = 96  # px
_QUALITY = 75
_Found = TypeVar("_Found")


class Pictures:
    """Of a prepared directory, as far as it is whole: what is damaged or gone is said once, and
    nothing more is drawn, as the figures of a report do not depend on its pictures.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._whole = directory, True

    def samples(self, split: str, numbers: list[int]) -> list[bytes]:
        """A WebP file for each of some samples of a split, by their numbers within its shards."""
        return self._drawn(lambda: _samples(self._directory, split, numbers)) or []

    def sheet(self) -> bytes | None:
        """The contact sheet of `spectral inspect --png` as WebP."""
        return self._drawn(lambda: _sheet(self._directory))

    def _drawn(self, draw: Callable[[], _Found]) -> _Found | None:
        if not self._whole:
            return None
        try:
            return draw()
        except (SpectralError, OSError) as error:
            self._whole = False
            why = describe(error) if isinstance(error, OSError) else error
            log.warning("the report lacks pictures: %s", why)
            return None


def _samples(directory: Path, split: str, numbers: list[int]) -> list[bytes]:
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


def _sheet(directory: Path) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "sheet.png"
        draw(directory, file)
        with Image.open(file) as image:
            return _webp(image.convert("RGB"), max(image.size))


def _webp(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY)
    return file.getvalue()
