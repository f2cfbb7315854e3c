"""Planes or a whole image in, the payload bytes that a shard stores out.

`zstd`: one zstd frame (with content size and checksum) of the plane's channels×h×w
int8. `raw`: h×w×channels uint8, planes shifted by +128. `jpeg`: a JPEG file.
"""

import io
from collections.abc import Callable
from functools import cache

import numpy as np
import zstandard
from numpy.typing import NDArray
from PIL import Image

from pipeline.options import Preparation

ZSTD_LEVEL = 1

Encoder = Callable[[NDArray[np.int8] | NDArray[np.uint8]], bytes]


def encoder(prep: Preparation) -> Encoder:
    """The function that codes one plane (C, h, w) int8, or one image (H, W, C) uint8."""
    if prep.codec == "zstd":
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
        return lambda plane: compressor.compress(plane.data)
    if prep.splits == 1:
        return _jpeg if prep.codec == "jpeg" else _raw_image
    return _raw_plane


def decode_plane(payload: bytes, codec: str, shape: tuple[int, int, int]) -> NDArray[np.int8]:
    """A stored plane back as (C, h, w) int8; ValueError when it does not hold one."""
    if codec == "raw":
        stored = np.frombuffer(payload, np.uint8).reshape(shape[1], shape[2], shape[0])
        return (stored ^ 128).view(np.int8).transpose(2, 0, 1)
    try:
        raw = _decompressor().decompress(payload, max_output_size=int(np.prod(shape)))
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    return np.frombuffer(raw, np.int8).reshape(shape)


def decode_whole(payload: bytes, codec: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A stored unsplit image back as (H, W, C) uint8; ValueError when it does not hold one."""
    if codec == "raw":
        return np.frombuffer(payload, np.uint8).reshape(shape[1], shape[2], shape[0])
    try:
        image = np.asarray(Image.open(io.BytesIO(payload)))
    except Exception as error:  # Pillow's readers raise many types on damaged input
        raise ValueError(f"not a whole JPEG: {error}") from error
    return image if image.ndim == 3 else image[:, :, None]


@cache
def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor()


def _raw_plane(plane: NDArray[np.int8] | NDArray[np.uint8]) -> bytes:
    return (plane.view(np.uint8) ^ 128).transpose(1, 2, 0).tobytes()


def _raw_image(image: NDArray[np.int8] | NDArray[np.uint8]) -> bytes:
    return image.tobytes()


def _jpeg(image: NDArray[np.int8] | NDArray[np.uint8]) -> bytes:
    """Quality 90 with 4:2:0 colour, as FFCV writes; up to 64 px 95 with 4:4:4."""
    small = max(image.shape[:2]) <= 64
    out = io.BytesIO()
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    Image.fromarray(pixels).save(
        out, "JPEG", quality=95 if small else 90, subsampling=0 if small else 2
    )
    return out.getvalue()
