"""Decode image files to RGB or grey pixels, or say why one cannot be used.

What counts is the content, never the file name. First frame of animations; EXIF
orientation ignored, as every ImageNet loader does; transparency dropped.
"""

import io
import warnings

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError, features

from pipeline.errors import BadImageError

Image.MAX_IMAGE_PIXELS = 89_478_485  # above it: a decompression bomb, refused
# Pillow opens some forty formats: among them are readers that never end on damaged input (DDS) and
# one that starts another program (EPS, Ghostscript). Only what people train on is opened; the
# reader of JPEG opens MPO, too.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM") + ("AVIF",) * bool(
    "avif" in features.modules and features.check("avif")
)
# Colour profiles and texts of good PNGs may be larger than the 1 MB that Pillow unpacks
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20
_MODES = {1: "L", 3: "RGB"}
_LEAST_OF_16_BITS = 4096  # a 16-bit image without any value as high holds fewer bits


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
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                image.draft(image.mode, (2 * target, 2 * target))
            image.load()
            return _to_mode(image, _MODES[channels])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        names = ", ".join(_FORMATS)
        raise BadImageError(f"not an image format that is read ({names})") from error
    except (MemoryError, BadImageError):
        raise
    except ImportError as error:  # its text names a path of this installation
        raise BadImageError("cannot decode: a colour mode that is not read") from error
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
    """Grey of more than 8 bits: the upper 8 of 16 (I;16, or I as Pillow opens some PNGs), floats
    from 0 to 1 times 255, anything from 0 to 255 as it is. BadImageError where the range that is
    meant cannot be told: it would become an image all black or white.
    """
    values = np.asarray(image)
    lowest, highest = values.min(), values.max()
    if image.mode == "F":
        if not (lowest >= 0 and highest <= 255):  # also of NaN
            raise BadImageError(f"float samples from {lowest:g} to {highest:g}, not 0 to 1 or 255")
        values = values * 255 if highest <= 1 else values
    elif image.mode.startswith("I;16") or highest > 255 or lowest < 0:
        if lowest < 0 or highest > 65535:
            raise BadImageError(f"integer samples from {lowest} to {highest}, not 0 to 65535")
        if 0 < highest < _LEAST_OF_16_BITS:
            raise BadImageError(f"16-bit samples, but none above {highest}: of fewer bits?")
        values = values >> 8
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
