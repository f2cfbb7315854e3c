"""Decode image files to RGB or grey pixels, or say why one cannot be used.

What counts is the content, never the file name. First frame of animations; EXIF
orientation ignored, as every ImageNet loader does; transparency dropped.
"""

import ctypes
import io
import logging
import warnings
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from pipeline.errors import BadImageError
from pipeline.planes.depth import raw_mode, to_8_bit

Image.MAX_IMAGE_PIXELS = 89_478_485  # above it: a decompression bomb, refused
# Pillow opens some forty formats: among them are readers that never end on damaged input (DDS) and
# one that starts another program (EPS, Ghostscript). Only what people train on is opened; the
# reader of JPEG opens MPO, too. Reasons name all of them: they are the same on every machine.
_NAMES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_FORMATS = tuple(
    name
    for name in _NAMES
    if name != "AVIF" or ("avif" in features.modules and features.check("avif"))
)
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_FRAME = 12  # bytes of a chunk beside its data: length, name, checksum
_MODES = {1: "L", 3: "RGB"}


def _quiet() -> None:
    """What libtiff and Pillow say of damage is a reason of ours; on stderr it is noise."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with suppress(AttributeError, OSError):  # a Pillow without libtiff
        pillow: Any = Image  # its compiled part finds the libtiff that it is linked to
        library = ctypes.CDLL(pillow.core.__file__)
        for setter in (library.TIFFSetWarningHandler, library.TIFFSetErrorHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


_quiet()


def decode(data: bytes, channels: int, target: int) -> Image.Image:
    """An image of mode L (1 channel) or RGB (3), at its own size or, for large JPEGs, less.

    Draft rule: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size (libjpeg's scaled DCT)
    only while both sides stay at least twice `target` px, so that the resize that
    follows still averages at least two samples each way.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        return _decoded(data, channels, target)
    except BadImageError:
        plain = _critical_chunks(data)
        if plain is None:
            raise
    return _decoded(plain, channels, target)


def _decoded(data: bytes, channels: int, target: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # broken EXIF and the like
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                image.draft(image.mode, (2 * target, 2 * target))
            raw = raw_mode(image)
            image.load()
            return _to_mode(to_8_bit(image, raw, data), _MODES[channels])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(
            f"more than {Image.MAX_IMAGE_PIXELS:,} pixels, as decompression bombs have: make it "
            "smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise BadImageError(_why_not(data)) from error
    except (MemoryError, BadImageError):
        raise
    except Exception as error:  # Pillow's readers raise many types on damaged input
        readers = _readers(data)
        name = f"{readers[0][0]} file, " if readers else ""
        raise BadImageError(f"cannot decode: {name}{_text(error)}") from error


_HEADER, _PIXELS = "its header is damaged", "its pixel data are damaged"
_CUT = "it is truncated, or a length in it is wrong"
_WORDS = {  # for what readers say of their own workings, by a part of it
    "runcated": _CUT,
    "unpack_from": _CUT,
    "out of range": _CUT,
    "Reached EOF": _CUT,
    "not enough image data": _CUT,
    "no more images": _CUT,
    "image not found": _CUT,
    "data stream": _PIXELS,
    "decoder": _PIXELS,
    "codec": _PIXELS,
    "next frame": _PIXELS,
    "cannot load this image": _PIXELS,
    "not identified by this driver": _HEADER,
}


def _text(error: Exception) -> str:
    """In words, and without what differs from machine to machine. Errors of Python itself, as of a
    table that lacks an entry, say nothing to people.
    """
    if isinstance(error, ImportError):  # it names a path of this installation
        return "a colour mode that is not read"
    first = error.__cause__ if str(error) == str(error.__cause__) else error
    for part, words in _WORDS.items():
        if part in str(first):
            return words
    return str(first) if isinstance(first, SyntaxError | OSError) and str(first) else _HEADER


def _readers(data: bytes) -> list[tuple[str, Any]]:
    """Those that take a file for one of their own, by name. Pillow has loaded those that matter: it
    has tried this file.
    """
    openers: dict[str, Any] = Image.OPEN
    found = []
    for name in filter(openers.__contains__, _FORMATS):
        factory, accept = openers[name]
        if accept and accept(data[:16]) is True:
            found.append((name, factory))
    return found


def _why_not(data: bytes) -> str:
    """The reason of a reader that takes the file for one of its own, which Image.open hides."""
    if data[4:12] in (b"ftypavif", b"ftypavis") and "AVIF" not in _FORMATS:
        return "AVIF, which the Pillow that is installed does not read"
    for name, factory in _readers(data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                factory(io.BytesIO(data), "")
            except Exception as error:  # as above
                return f"cannot decode: {name} file, {_text(error)}"
    return f"not an image format that is read ({', '.join(_NAMES)})"


def from_pixels(data: bytes, channels: int, shape: tuple[int, int, int]) -> Image.Image:
    """The same of pixels, (height, width, 1 or 3) uint8."""
    pixels = np.frombuffer(data, np.uint8).reshape(shape)
    return _to_mode(Image.fromarray(pixels[:, :, 0] if shape[2] == 1 else pixels), _MODES[channels])


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _critical_chunks(data: bytes) -> bytes | None:
    """A PNG file without texts, profiles, dates. None if it is no PNG or has no such chunks.

    Viewers show an image whose text has a wrong checksum, or whose profile is very large. The bit
    of value 32 in the first letter of a name says that a chunk may be passed over.
    """
    if not data.startswith(_PNG):
        return None
    kept, at, dropped = [_PNG], len(_PNG), False
    while at + 8 <= len(data):
        end = at + _PNG_FRAME + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4] & 32:
            dropped = True
        else:
            kept.append(data[at:end])
        at = end
    return b"".join(kept) if dropped else None
