"""Bytes of an image file in, what a preparation stores of it out.

`image_to_values` is the whole chain for one image; prediction uses the same one.
"""

import threading
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import BadImageError
from pipeline.planes.decode import decode, from_pixels
from pipeline.planes.splitter import Planes, Splitter
from pipeline.preparation import Preparation

FILTER = Image.Resampling.BILINEAR  # Pillow's: area-weighted, so antialiased when it shrinks
MAX_ASPECT = 32  # of images whose aspect is kept
_LONGEST_JPEG = 65_500  # px, that libjpeg writes


class _Own(threading.local):
    """Of each thread."""

    def __init__(self) -> None:
        self.splitters: dict[Preparation, Splitter] = {}


_own = _Own()


def load(
    data: bytes, prep: Preparation, shape: tuple[int, int, int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """The resized image of mode L or RGB, and the image's own (width, height) in px.

    shape: `data` is no image file but pixels, (height, width, channels). BadImageError with the
    reason when the bytes hold no usable image. The own size is that of the decoded image, which
    a draft may have reduced.
    """
    if shape is None:
        image = decode(data, prep.channels, prep.size)
    else:
        image = from_pixels(data, prep.channels, shape)
    width, height = image.size
    longest = min(MAX_ASPECT, _LONGEST_JPEG // prep.size)
    if prep.resize == "shortest" and max(width, height) > longest * min(width, height):
        raise BadImageError(f"{width}x{height} px is longer than {longest}:1")
    return resize(image, prep.resize, prep.size), (width, height)


def resize(image: Image.Image, policy: str, size: int) -> Image.Image:
    """`squash`: both sides to `size` px. `crop`: the largest centred square, then `size`.
    `shortest`: the shorter side to `size`, the aspect kept.
    """
    w, h = image.size
    if policy == "shortest":
        scale = size / min(w, h)
        wanted = (max(size, round(w * scale)), max(size, round(h * scale)))
        box: tuple[float, float, float, float] = (0, 0, w, h)
    else:
        wanted = (size, size)
        side = min(w, h)
        left, top = (w - side) / 2, (h - side) / 2
        box = (left, top, left + side, top + side) if policy == "crop" else (0, 0, w, h)
    return image if image.size == wanted else image.resize(wanted, FILTER, box=box)


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, channels), a copy."""
    found = np.asarray(image)
    return found if found.ndim == 3 else found[:, :, None]


def packed(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 4) of mode RGB: Pillow's own memory, not copied, with a fourth byte that means
    nothing; (H, W, 1) of mode L, a copy: Pillow lends the memory of an image that it has not
    allocated itself, as `from_pixels` makes them, with a crash.
    """
    if image.mode == "L":
        return pixels(image)
    lent: Any = image  # what Pillow lends by Arrow's interface has no types yet
    try:
        values = pa.array(lent).values
    except ValueError:  # an image of more than 16 MiB lies in several pieces
        return pixels(image.convert("RGBX"))
    return np.frombuffer(values.buffers()[1], np.uint8).reshape(image.height, image.width, 4)


def image_to_values(
    data: bytes, prep: Preparation, shape: tuple[int, int, int] | None = None
) -> Planes:
    """What a trained network gets of an image file: (N, channels, h, w) int8, centred on 0.

    The quantised planes, or for `--splits 1` the pixels less 128; an image whose aspect was
    kept is cut to its centred square. shape: as of `load`. BadImageError if it is no image.
    Threads may call this at the same time.
    """
    image, _ = load(data, prep, shape)
    if prep.splits == 1:
        centre = _centre(pixels(image), prep.input_shape[1])
        return (centre ^ 128).view(np.int8).transpose(2, 0, 1)[None].copy()
    splitter = _splitter(prep)
    planes = splitter.empty()
    splitter.split(packed(image), planes, np.zeros(prep.splits, np.int64))
    return planes


def _splitter(prep: Preparation) -> Splitter:
    """One for each thread, since it works in memory of its own."""
    if prep not in _own.splitters:
        _own.splitters[prep] = Splitter(prep)
    return _own.splitters[prep]


def _centre(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The centred square of `side` px."""
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]
