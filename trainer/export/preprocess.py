"""The lines that make of an image file what an exported classifier takes, with Pillow alone."""

from pipeline.preparation import Preparation
from trainer.export.split import image_side

NAME = "preprocess.py"
_TEXT = '''"""Makes of images what the classifier beside this takes; needs Pillow and NumPy."""

import numpy as np
from PIL import Image

SIZE, RESIZE, SIDE, MODE = {size}, "{resize}", {side}, "{mode}"


def load(path):
    """An image as (1, {side}, {side}, {channels}) uint8; np.concatenate makes batches of them."""
    image = Image.open(path)
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        image.draft(image.mode, (2 * SIZE, 2 * SIZE))  # large ones are decoded smaller
    image = image.convert(MODE)  # the EXIF orientation is ignored, as in training
    (w, h), size, box = image.size, (SIZE, SIZE), None
    if RESIZE == "crop":  # the largest centred square
        x, y = (w - min(w, h)) / 2, (h - min(w, h)) / 2
        box = (x, y, x + min(w, h), y + min(w, h))
    if RESIZE == "shortest":  # the aspect is kept
        size = tuple(max(SIZE, round(side * SIZE / min(w, h))) for side in (w, h))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR, box)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    image = image.crop((left, top, left + SIDE, top + SIDE))
    return np.asarray(image).reshape(1, SIDE, SIDE, -1)
'''


def preprocessing(prep: Preparation) -> str:
    """A Python file for one preparation."""
    return _TEXT.format(
        size=prep.size,
        resize=prep.resize,
        side=image_side(prep),
        mode="RGB" if prep.channels == 3 else "L",
        channels=prep.channels,
    )
