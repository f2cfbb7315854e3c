"""A file that holds the pixels of many images in, the pixels of one out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.errors import SourceError
from pipeline.sources import cifar_files, idx
from pipeline.sources.index import Container, Place


def open_array(path: Path, container: Container) -> Callable[[Place], bytes]:
    """Loads the array once; a row of it as height x width x channels bytes."""
    if container.form == "idx":
        rows = idx.read_rows(path)
    else:
        rows = cifar_files.read_rows(path, container.inner, container.form)
    assert container.shape is not None
    height, width, channels = container.shape
    if rows.shape[1] != height * width * channels:
        raise SourceError(f"{path} has changed: images were {height} x {width} when it was indexed")

    def read(place: Place) -> bytes:
        if place.offset >= len(rows):
            raise SourceError(f"{path} has become shorter since it was indexed")
        planes = rows[place.offset].reshape(channels, height, width)
        return np.ascontiguousarray(planes.transpose(1, 2, 0)).tobytes()

    return read
