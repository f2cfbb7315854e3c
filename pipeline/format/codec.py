"""Planes or a whole image in, the payload bytes that a shard stores out.

`zstd`: one zstd frame (with content size and checksum) of the plane's channels×h×w
int8. `raw`: h×w×channels uint8, planes shifted by +128. `jpeg`: a JPEG file.
"""

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import BadImageError, DamagedError
from pipeline.format.beton import PAGE, BetonReader
from pipeline.preparation import Preparation

Bytes = NDArray[np.uint8]
Encoder = Callable[[NDArray[np.int8] | NDArray[np.uint8], "Payloads"], None]


class Payloads:
    """The payloads of a chunk: those of plane k end to end in row k of `rows`, (N, S) uint8, in
    use up to `ends`, (N,). The rows lie in the memory that is given, while it is large enough.
    """

    def __init__(self, splits: int) -> None:
        self.splits = splits
        self.start(np.empty(0, np.uint8))

    def start(self, room: Bytes) -> None:
        """Forget all samples; the next ones go to `room`, (bytes,). `in_room`: whether they fit."""
        self.rows = room[: len(room) // self.splits * self.splits].reshape(self.splits, -1)
        self.ends = np.zeros(self.splits, np.int64)
        self.in_room = True
        self._sizes: list[NDArray[np.uint32]] = []

    def reserve(self, size: int) -> None:
        """At least `size` bytes more in each row; in memory of our own, where those end."""
        used = int(self.ends.max())
        if used + size > self.rows.shape[1]:
            rows = np.empty((self.splits, 2 * (used + size)), np.uint8)
            rows[:, :used] = self.rows[:, :used]
            self.rows, self.in_room = rows, False

    def added(self, sizes: NDArray[np.uint32]) -> None:
        """The next sample's payloads lie at `ends`: bytes of each, (N,)."""
        self._sizes.append(sizes)
        self.ends += sizes

    def append(self, payloads: Bytes) -> None:
        """The next sample: (N, size)."""
        size = payloads.shape[1]
        self.reserve(size)
        for row, end, payload in zip(self.rows, self.ends.tolist(), payloads, strict=True):
            row[end : end + size] = payload
        self.added(np.full(self.splits, size, np.uint32))

    def last(self, k: int) -> bytes:
        """The last sample's payload of plane k."""
        end = int(self.ends[k])
        return self.rows[k, end - int(self._sizes[-1][k]) : end].tobytes()

    def sizes(self) -> NDArray[np.uint32]:
        """Bytes of each payload, (m, N)."""
        return np.array(self._sizes, np.uint32).reshape(-1, self.splits)


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
    from pipeline.format.zstd import CompressionContext, compress_planes, room_for

    context = CompressionContext()

    def encode(planes: NDArray[np.int8] | NDArray[np.uint8], payloads: Payloads) -> None:
        flat = planes.reshape(len(planes), -1).view(np.int8)
        sizes = np.empty(len(flat), np.uint32)
        payloads.reserve(room_for(flat.shape[1]))
        rows, ends = payloads.rows, payloads.ends
        if not compress_planes(context.address, search, flat, rows, ends, sizes):
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
        raise ValueError("not a whole zstd frame") from error
    return np.frombuffer(raw, np.int8).reshape(shape)


def stored(reader: BetonReader, i: int, prep: Preparation) -> NDArray[Any]:
    """Sample i of a shard, a plane as (C, h, w) or a whole image as (H, W, C). DamagedError."""
    payload = reader.payload(i)
    try:
        if prep.splits == 1:
            return decode_whole(payload, prep.codec, reader.shape(i))
        return decode_plane(payload, prep.codec, prep.plane_shape)
    except ValueError as error:
        raise DamagedError(
            f"{reader.path}: sample {i} is damaged; `spectral verify` names all files that are"
        ) from error


def decode_whole(payload: bytes, codec: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A stored unsplit image back as (H, W, C) uint8; ValueError when it does not hold one."""
    if codec == "raw":
        return np.frombuffer(payload, np.uint8).reshape(shape[1], shape[2], shape[0])
    try:
        image = np.asarray(Image.open(io.BytesIO(payload)))
    except Exception as error:  # Pillow's readers raise many types on damaged input
        raise ValueError("not a whole JPEG") from error
    return image if image.ndim == 3 else image[:, :, None]


@cache
def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor()


def _raw_planes(planes: NDArray[np.int8] | NDArray[np.uint8], payloads: Payloads) -> None:
    shifted: Bytes = planes.view(np.uint8) ^ np.uint8(128)
    payloads.append(shifted.transpose(0, 2, 3, 1).reshape(len(shifted), -1))


def _raw_image(image: NDArray[np.int8] | NDArray[np.uint8], payloads: Payloads) -> None:
    payloads.append(np.ascontiguousarray(image, np.uint8).reshape(1, -1))


def _jpeg(image: NDArray[np.int8] | NDArray[np.uint8], payloads: Payloads) -> None:
    """Quality 90 with 4:2:0 colour, as FFCV writes; up to 64 px 95 with 4:4:4. BadImageError if
    it takes more than a page.
    """
    small = max(image.shape[:2]) <= 64
    out = io.BytesIO()
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    Image.fromarray(pixels).save(
        out, "JPEG", quality=95 if small else 90, subsampling=0 if small else 2
    )
    stored = np.frombuffer(out.getvalue(), np.uint8)
    if stored.size > PAGE:
        raise BadImageError(f"it takes {stored.size:,} bytes as JPEG, more than {PAGE:,}: a page")
    payloads.append(stored[None])
