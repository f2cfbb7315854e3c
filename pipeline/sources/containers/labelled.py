"""Images that are pixels in memory, with their labels: what files of arrays are parsed to."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError


@dataclass(frozen=True)
class Labelled:
    """A file of images. pixels: (rows, height, width, channels)."""

    split: str
    pixels: NDArray[np.uint8]
    labels: list[int]

    def check(self, classes: int, where: str, why: str) -> None:
        """SourceError for labels that do not fit; where: they come from, why: so many of them."""
        rows = len(self.pixels)
        if len(self.labels) != rows:
            raise SourceError(f"{where} has {len(self.labels)} labels, expected {rows}{why}")
        for row, label in enumerate(self.labels):
            if not 0 <= label < classes:
                raise SourceError(
                    f"{where}: row {row} has label {label}, expected 0 to {classes - 1}"
                )


@dataclass(frozen=True)
class Arrays:
    """What a folder or archive holds: files by name, names of the classes, what was looked at."""

    files: dict[str, Labelled]
    classes: list[str]
    paths: list[Path]

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width, channels) of all images."""
        return next(iter(self.files.values())).pixels.shape[1:]
