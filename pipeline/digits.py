"""Writes scikit-learn's handwritten digits as image files in class folders: the demo's source."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32  # px; the digits are 8×8, enlarged
VAL_EVERY = 5


def write_digits(root: Path) -> Path:
    """1,797 PNG files as {train,val}/<digit>/<number>.png, every fifth of them val."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        split = "val" if number % VAL_EVERY == 0 else "train"
        path = root / split / str(label) / f"{number:04d}.png"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.clip(pixels.reshape(8, 8) * 16, 0, 255).astype(np.uint8)
        Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return root
