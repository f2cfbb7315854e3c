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

Bytes = NDArray[np.uint8]
Encoder = Callable[[NDArray[np.int8] | NDArray[np.uint8], "Payloads"], None]


class Payloads:
    """The payloads of a chunk, sample after sample, in memory that grows and is used again."""

    def __init__(self, splits: int) -> None:
        self.splits = splits
        self._memory = np.empty(1 << 20, np.uint8)
        self.clear()

    def clear(self) -> None:
        """Forget all samples."""
        self.total = 0
        self._sizes: list[NDArray[np.uint32]] = []

    def room(self, size: int) -> Bytes:
        """The free part of the memory, at least `size` bytes, for the next sample's payloads."""
        if self.total + size > len(self._memory):
            grown = np.empty(2 * (self.total + size), np.uint8)
            grown[: self.total] = self._memory[: self.total]
            self._memory = grown
        return self._memory[self.total :]

    def added(self, sizes: NDArray[np.uint32]) -> None:
        """The next sample's payloads lie end to end in `room`: bytes of each plane, (N,)."""
        self._sizes.append(sizes)
        self.total += int(sizes.sum(dtype=np.int64))

    def append(self, payload: bytes | Bytes) -> None:
        """The next sample, whose payloads all have the same size."""
        size = len(payload)
        self.room(size)[:size] = np.frombuffer(payload, np.uint8)
        self.added(np.full(self.splits, size // self.splits, np.uint32))

    def last(self) -> bytes:
        """The last sample's payloads, end to end."""
        return self._memory[self.total - int(self._sizes[-1].sum()) : self.total].tobytes()

    def sizes(self) -> NDArray[np.uint32]:
        """Bytes of each payload, (m, N)."""
        return np.array(self._sizes, np.uint32).reshape(-1, self.splits)

    def group(self, out: Bytes) -> None:
        """Copy all to `out`: plane 0 of every sample, then plane 1, and so on."""
        from pipeline.planes.kernels.frames import group_payloads

        group_payloads(self._memory, self.sizes(), out)


def encoder(prep: Preparation) -> Encoder:
    """The function that codes all planes (N, C, h, w) int8 of a sample, or its one image
    (H, W, C) uint8, and adds them to payloads.
    """
    if prep.codec == "zstd":
        return _zstd(search=prep.transform == "none" or prep.p == 2)
    if prep.splits == 1:
        return _jpeg if prep.codec == "jpeg" else _raw_image
    return _raw_planes


def _zstd(search: bool) -> Encoder:
    """search: let libzstd look for matches, which pays for planes that still look like images."""
    from pipeline.planes.kernels.frames import compress_planes, room_for
    from pipeline.zstd import CompressionContext

    context = CompressionContext()

    def encode(planes: NDArray[np.int8] | NDArray[np.uint8], payloads: Payloads) -> None:
        flat = planes.reshape(len(planes), -1)
        sizes = np.empty(len(flat), np.uint32)
        room = payloads.room(len(flat) * room_for(flat.shape[1]))
        if compress_planes(context.address, search, flat, room, sizes) < 0:
            raise RuntimeError("libzstd refused a plane")
        payloads.added(sizes)

    return encode


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


def _raw_planes(planes: NDArray[np.int8] | NDArray[np.uint8], payloads: Payloads) -> None:
    shifted: Bytes = planes.view(np.uint8) ^ np.uint8(128)
    payloads.append(shifted.transpose(0, 2, 3, 1).ravel())


def _raw_image(image: NDArray[np.int8] | NDArray[np.uint8], payloads: Payloads) -> None:
    payloads.append(image.tobytes())


def _jpeg(image: NDArray[np.int8] | NDArray[np.uint8], payloads: Payloads) -> None:
    """Quality 90 with 4:2:0 colour, as FFCV writes; up to 64 px 95 with 4:4:4."""
    small = max(image.shape[:2]) <= 64
    out = io.BytesIO()
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    Image.fromarray(pixels).save(
        out, "JPEG", quality=95 if small else 90, subsampling=0 if small else 2
    )
    payloads.append(out.getvalue())
