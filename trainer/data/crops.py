"""FFCV operations for whole images, JPEG or raw: centre, corners, or seeded random crops.

A random crop is a pure function of (seed, epoch, position in the epoch), whatever the number of
threads or processes, so that an image that comes several times is seen in other crops; FFCV's own
draws from numba's global state, which nothing seeds. And FFCV's decoders ignore what the JPEG
library says of a damaged file; these keep a status of each sample.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from pipeline.format.beton import MODE_JPEG, MODE_RAW
from pipeline.jit import external, parallel_kernel
from trainer.data.field import CORRUPT, OK, WRONG_SIZE
from trainer.data.stock import (
    AllocationQuery,
    SimpleRGBImageDecoder,
    State,
    ctypes_imdecode,
    ctypes_memcopy,
    ctypes_resize,
)

SCALE = (0.08, 1.0)  # of the image's area
RATIO = (3 / 4, 4 / 3)  # width to height
_TRIES = 10
FIVE = 5  # four corners and the centre

_WEYL, _MIX_1, _MIX_2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_11, _27, _30, _31 = map(np.uint64, (11, 27, 30, 31))
_int32, _int64, _uint32, _size, _bool = (
    types.int32, types.int64, types.uint32, types.uintp, types.boolean
)  # fmt: skip
_imdecode: Any = external(
    "spectral_imdecode", ctypes_imdecode,
    _int32(_size, _size, _uint32, _uint32, _size, *[_uint32] * 6, _bool, _bool),
)  # fmt: skip
_resize: Any = external("spectral_resize", ctypes_resize, _int32(*[_int64] * 11))
_memcpy: Any = external("spectral_memcpy", ctypes_memcopy, _int32(_size, _size, _size))


@numba.njit(error_model="numpy")
def _mix(x: Any) -> Any:
    """The finaliser of splitmix64."""
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@numba.njit(error_model="numpy")
def _key(seed: Any, epoch: Any, position: Any) -> Any:
    """The state of a generator of its own for each (seed, epoch, position)."""
    key = _mix(np.uint64(seed) + _WEYL)
    key = _mix((key ^ np.uint64(epoch)) + _WEYL)
    return _mix((key ^ np.uint64(position)) + _WEYL)


@numba.njit(error_model="numpy")
def _uniform(key: Any, draw: Any, low: Any, high: Any) -> Any:
    """Number `draw` of splitmix64 from `key` on, in [low, high)."""
    bits = _mix(key + np.uint64(draw + 1) * _WEYL) >> _11
    return low + (high - low) * (np.float64(bits) * 2.0**-53)


@numba.njit(error_model="numpy")
def random_box(seed: Any, epoch: Any, position: Any, height: Any, width: Any) -> Any:
    """(top, left, height, width) in px of an image's crop: torchvision's RandomResizedCrop."""
    key, area = _key(seed, epoch, position), float(height * width)
    low, high = np.log(RATIO[0]), np.log(RATIO[1])
    for attempt in range(_TRIES):
        target = area * _uniform(key, 4 * attempt, SCALE[0], SCALE[1])
        aspect = np.exp(_uniform(key, 4 * attempt + 1, low, high))
        w, h = round(np.sqrt(target * aspect)), round(np.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(_uniform(key, 4 * attempt + 2, 0, height - h + 1))
            left = int(_uniform(key, 4 * attempt + 3, 0, width - w + 1))
            return top, left, h, w
    h = min(height, round(width / RATIO[0]))
    w = min(width, round(height * RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


@numba.njit(error_model="numpy")
def _jpeg_size(data: Any) -> Any:
    """(height, width) in a JPEG file's frame header; (0, 0) where there is none."""
    at = 2
    while at + 9 <= data.size and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[at + 5] * 256 + data[at + 6], data[at + 7] * 256 + data[at + 8]
        at += 2 + data[at + 2] * 256 + data[at + 3]
    return 0, 0


@numba.njit(error_model="numpy")
def _payload(pointer: Any, storage: Any) -> Any:
    """The bytes of a sample; none where the pointer is not of the allocation table."""
    file, pointers, sizes = storage
    row = np.searchsorted(pointers, pointer)
    if row == len(pointers) or pointers[row] != pointer:
        return file[:0]
    return file[pointer : pointer + sizes[row]]


@numba.njit(error_model="numpy")
def _pixels(data: Any, mode: Any, height: Any, width: Any, out: Any) -> Any:
    """A status; the decoded pixels lie in `out`, as many bytes as they need."""
    if mode == MODE_RAW:
        if data.size != 3 * height * width:
            return WRONG_SIZE
        _memcpy(data.ctypes.data, out.ctypes.data, data.size)
        return OK
    found = _jpeg_size(data)
    if mode != MODE_JPEG or found[0] == 0:
        return CORRUPT
    if found != (height, width):
        return WRONG_SIZE
    failed = _imdecode(
        data.ctypes.data, data.size, height, width, out.ctypes.data,
        height, width, 0, 0, 1, 1, False, False,
    )  # fmt: skip
    return CORRUPT if failed else OK


@numba.njit(error_model="numpy")
def _decode(row: Any, value: Any, scratch: Any, storage: Any, draw: Any) -> Any:
    """A status; one sample's crop lies in value, (h, w, 3). draw: its (seed, epoch, position), or
    nothing for the centre.
    """
    height, width, side = np.int64(row["height"]), np.int64(row["width"]), value.shape
    data = _payload(row["data_ptr"], storage)
    if len(draw) == 0 and (height, width) == side[:2]:
        return _pixels(data, row["mode"], height, width, value)
    if len(draw):
        top, left, h, w = random_box(draw[0], draw[1], draw[2], height, width)
    else:
        h, w = side[0], side[1]
        top, left = (height - h) // 2, (width - w) // 2
    if h < 1 or w < 1 or top < 0 or left < 0:
        return WRONG_SIZE
    status = _pixels(data, row["mode"], height, width, scratch)
    if status == OK:
        _resize(
            0, scratch.ctypes.data, height, width, top, top + h, left, left + w,
            value.ctypes.data, side[0], side[1],
        )  # fmt: skip
    return status


@parallel_kernel
def _decode_batch(
    indices: Any, values: Any, status: Any, metadata: Any, storage: Any, scratch: Any, draws: Any
) -> None:
    """scratch: (threads, bytes of the largest image). draws: (B, 3) uint64, (seed, epoch,
    position), or (B, 0) for the centre.
    """
    for i in numba.prange(len(indices)):
        # Two dimensions: FFCV changes numba's type of one-dimensional uint8 arrays in place.
        thread = numba.get_thread_id()  # type: ignore[attr-defined]
        room = scratch[thread : thread + 1]
        status[i] = _decode(metadata[indices[i]], values[i], room, storage, draws[i])


@numba.njit(error_model="numpy")
def _decode_five(row: Any, values: Any, scratch: Any, storage: Any) -> Any:
    """A status; one sample's corners and centre lie in values, (5, h, w, 3)."""
    height, width = np.int64(row["height"]), np.int64(row["width"])
    h, w = values.shape[1], values.shape[2]
    down, right = height - h, width - w
    if h < 1 or w < 1 or down < 0 or right < 0:
        return WRONG_SIZE
    data = _payload(row["data_ptr"], storage)
    status = _pixels(data, row["mode"], height, width, scratch)
    if status == OK:
        corners = ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2))
        for i, (top, left) in enumerate(corners):
            _resize(
                0, scratch.ctypes.data, height, width, top, top + h, left, left + w,
                values[i].ctypes.data, h, w,
            )  # fmt: skip
    return status


@parallel_kernel
def _decode_five_batch(
    indices: Any, values: Any, status: Any, metadata: Any, storage: Any, scratch: Any
) -> None:
    """scratch: (threads, bytes of the largest image)."""
    for i in numba.prange(len(indices)):
        thread = numba.get_thread_id()  # type: ignore[attr-defined]
        room = scratch[thread : thread + 1]  # two dimensions, as in _decode_batch
        status[i] = _decode_five(metadata[indices[i]], values[i], room, storage)


class CentreDecoder(SimpleRGBImageDecoder):  # type: ignore[misc]
    """Decodes images and cuts out their centre, (B, height, width, 3) uint8; needs os_cache.

    Images of just this size come whole. Each sample's status lies beside it, as with
    `trainer.data.field.PlaneDecoder`. FFCV takes a decoder of images for one by its base class.
    """

    status_text: ClassVar = {
        CORRUPT: "its JPEG file is damaged",
        WRONG_SIZE: "its image is of another size than its row says, or too small",
    }

    def __init__(self, output: tuple[int, int]) -> None:
        super().__init__()
        self._shape: tuple[int, ...] = (*output, 3)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        """Shape and memory of a batch, for FFCV's graph."""
        shape, dtype = self._shape, np.dtype(np.uint8)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, (AllocationQuery(shape, dtype), AllocationQuery((), np.dtype(np.int32)))

    def generate_code(self) -> Callable[..., Any]:
        """A stock Loader compiles the returned function anew each time, so it only calls."""
        largest = self._largest()

        def decode(indices: Any, memory: Any, metadata: Any, storage_state: Any) -> Any:
            values, status = memory
            centre = np.empty((len(indices), 0), np.uint64)
            scratch = np.empty((numba.get_num_threads(), largest), np.uint8)
            with numba.parallel_chunksize(1):
                _decode_batch(indices, values, status, metadata, storage_state, scratch, centre)
            return values[: len(indices)]

        return decode

    def _largest(self) -> int:
        """Bytes of the largest image: FFCV's own has a buffer a sample, of height × width."""
        sizes = self.metadata["height"].astype(np.int64) * self.metadata["width"]
        return 3 * int(sizes.max(initial=0))


class FiveCropDecoder(CentreDecoder):
    """The four corners, row by row, and the centre, of one decoding: (B, 5, height, width, 3)."""

    def __init__(self, output: tuple[int, int]) -> None:
        super().__init__(output)
        self._shape = (FIVE, *output, 3)

    def generate_code(self) -> Callable[..., Any]:
        """Only calls, too."""
        largest = self._largest()

        def decode(indices: Any, memory: Any, metadata: Any, storage_state: Any) -> Any:
            values, status = memory
            scratch = np.empty((numba.get_num_threads(), largest), np.uint8)
            with numba.parallel_chunksize(1):
                _decode_five_batch(indices, values, status, metadata, storage_state, scratch)
            return values[: len(indices)]

        return decode


class RandomCropDecoder(CentreDecoder):
    """Random crops instead of the centre, resized to `output` by FFCV's own function. For loaders
    that do not compile it.
    """

    _draws: NDArray[np.uint64]

    def draw(self, seed: int, epoch: int, positions: NDArray[np.int64]) -> None:
        """Which crops follow, batch by batch; not while an epoch is being read."""
        draws = np.empty((len(positions), 3), np.uint64)
        draws[:, 0], draws[:, 1], draws[:, 2] = seed, epoch, positions
        self._draws = draws

    def generate_code(self) -> Callable[..., Any]:
        """Batches come in order, and one after the other."""
        largest = self._largest()

        def decode(indices: Any, memory: Any, metadata: Any, storage_state: Any) -> Any:
            values, status = memory
            draws, self._draws = self._draws[: len(indices)], self._draws[len(indices) :]
            assert len(draws) == len(indices), "crops are to be drawn before each pass"
            scratch = np.empty((numba.get_num_threads(), largest), np.uint8)
            with numba.parallel_chunksize(1):
                _decode_batch(indices, values, status, metadata, storage_state, scratch, draws)
            return values[: len(indices)]

        return decode
