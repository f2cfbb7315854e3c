"""An image of any size in, pixels of the size that a preparation asks for out."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FILTER = Image.Resampling.BILINEAR  # Pillow's: area-weighted, so antialiased when it shrinks


def resize(image: Image.Image, policy: str, size: int) -> NDArray[np.uint8]:
    """Pixels (H, W, channels) uint8.

    `squash`: both sides to `size` px. `crop`: the largest centred square, then `size`.
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
    if image.size != wanted:
        image = image.resize(wanted, FILTER, box=box)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
