"""Bytes of an image file in, RGB or grey pixels out, or a reason why not.

What counts is the content, never the file name. First frame of animations; EXIF
orientation ignored, as every ImageNet loader does; transparency dropped.
"""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import BadImageError

Image.MAX_IMAGE_PIXELS = 89_478_485  # above it: a decompression bomb, refused
_MODES = {1: "L", 3: "RGB"}


def decode(data: bytes, channels: int, target: int) -> Image.Image:
    """An image of mode L (1 channel) or RGB (3), at its own size or, for large JPEGs, less.

    Draft rule: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size (libjpeg's scaled DCT)
    only while both sides stay at least twice `target` px, so that the resize that
    follows still averages at least two samples each way.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # broken EXIF and the like
            image = Image.open(io.BytesIO(data))
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                image.draft(image.mode, (2 * target, 2 * target))
            image.load()
            return _to_mode(image, _MODES[channels])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise BadImageError("not an image that Pillow knows") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many types on damaged input
        raise BadImageError(f"cannot decode: {type(error).__name__}: {error}") from error


def from_pixels(data: bytes, channels: int, shape: tuple[int, int, int]) -> Image.Image:
    """The same of pixels, (height, width, 1 or 3) uint8."""
    pixels = np.frombuffer(data, np.uint8).reshape(shape)
    return _to_mode(Image.fromarray(pixels[:, :, 0] if shape[2] == 1 else pixels), _MODES[channels])


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    return image if image.mode == mode else image.convert(mode)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit grey (I;16, or I as Pillow opens some PNGs) to its upper 8 bits; else clipped."""
    values = np.asarray(image)
    wide = values.dtype.kind in "iu" and values.size and values.max() > 255
    if image.mode.startswith("I;16") or wide:
        values = np.clip(values, 0, 65535) >> 8
    return Image.fromarray(np.clip(np.nan_to_num(values), 0, 255).astype(np.uint8))
