"""Images of more than 8 bits in, 8 bits out; a reason where the range that is meant is not clear.

Sixteen bits are often a container for fewer: cameras and scanners have 12. Cut to the upper 8 of
16, such an image would be black, and nobody would notice.
"""

import io
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import BadImageError

_OF_16 = 4096  # an image without any value as high holds 12 bits, or is dark
_FLAT = 16  # floats of an image from 0 to 255 go as high
_NATIVE, _OTHER = (";16L", ";16B") if sys.byteorder == "little" else (";16B", ";16L")
_LOW = {";16B": ";16L", ";16L": ";16B", ";16N": _OTHER}


def raw_mode(image: Image.Image) -> str:
    """How the pixels of an image that has been opened, but not loaded, lie in its file."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    return str(args if isinstance(args, str) else (args or ("",))[0])


def to_8_bit(image: Image.Image, raw: str, data: bytes) -> Image.Image:
    """The same with 8 bits a channel. raw: as `raw_mode` says, data: the file.

    Grey (I;16, or I as some are opened) and colour alike; of colour Pillow keeps the upper 8 bits
    alone, so that it is opened again for the lower ones where it looks black.
    """
    if image.mode == "F":
        return Image.fromarray(_of_floats(np.asarray(image)))
    if image.mode.startswith("I"):
        bits = 16 if image.format == "PPM" else 12 if raw == "I;12" else None
        return Image.fromarray(_of_integers(np.asarray(image), bits))
    if raw[-4:] in _LOW and image.mode in ("RGB", "RGBA") and image.format != "PPM":
        upper = np.asarray(image)[:, :, :3]
        if upper.max() < _OF_16 >> 8:
            values = upper.astype(np.int32) << 8 | _lower(raw, data)
            return Image.fromarray(_of_integers(values, None))
    return image


def _of_integers(values: NDArray[Any], bits: int | None) -> NDArray[np.uint8]:
    """The upper 8 of `bits`, or of as many as are used: 16; 12 where no value is above 4095; 8
    where none is above 255. Multiples of 256 or 257 are 8 bits made 16, however dark.
    """
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise BadImageError(f"integer samples from {lowest} to {highest}, not 0 to 65535")
    if bits is None:
        made = any(not (values % step).any() for step in (256, 257))
        bits = 16 if highest >= _OF_16 or made else 12 if highest > 255 else 8
    return (values.astype(np.int32) >> (bits - 8)).astype(np.uint8)


def _of_floats(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Floats from 0 to 1 times 255, anything from 0 to 255 as it is."""
    lowest, highest = values.min(), values.max()
    unclear = 1 < highest < _FLAT
    if not (lowest >= 0 and highest <= 255) or unclear:  # also of NaN
        raise BadImageError(f"float samples from {lowest:g} to {highest:g}, not 0 to 1 or 255")
    levels: NDArray[Any] = values * 255 if highest <= 1 else values
    return np.asarray(levels.astype(np.uint8))


def _lower(raw: str, data: bytes) -> NDArray[np.int32]:
    """The lower 8 bits of each sample: the bytes taken in the other order."""
    swapped = "RGBA" if raw == "LA;16B" else raw[:-4] + _LOW[raw[-4:]]
    image: Any = Image.open(io.BytesIO(data))
    image.tile = [
        tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *tile.args[1:]))
        for tile in image.tile
    ]
    image.load()
    found = np.asarray(image)
    return (found[:, :, 1:2] if raw == "LA;16B" else found[:, :, :3]).astype(np.int32)
