"""int8 planes in, zstd frames out; and the one libzstd that all of this project uses.

The planes of a DCT hold few matches worth having but runs of equal bytes, mostly zeros. Those
are found here and only coded by libzstd: in about half the time, and frames are smaller.

What is used beyond documented interfaces, all of it here; `CompressionContext` tries it at the
start of each process:
- The library is the one inside the zstandard package, `_cffi*.so`, which exports libzstd's
  functions: frames are the same wherever the same requirements are installed. In a build of the
  package without it, the system's libzstd.so.1; then bytes depend on its version.
- llvmlite is told names of our own for the functions that kernels call, since numba's cache on
  disk keeps a name, not the address of one process.
- Three of the parameters that are set are among the experimental ones of zstd.h, by number.
- numba's `leading_zeros` and `trailing_zeros` are from a module that it calls unsafe.
"""

import ctypes
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import zstandard
from numba import types
from numba.cpython.unsafe import numbers
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.jit import kernel

_COMPRESS, _COMPRESS_SEQUENCES = "spectral_ZSTD_compress2", "spectral_ZSTD_compressSequences"
BLOCK = 1 << 17  # the most that a zstd block may hold, bytes
SHORTEST_RUN = 12  # shorter ones cost more as a match than as literals

# ZSTD_cParameter of zstd.h. The three of four digits are among its experimental ones.
_PARAMETERS = {
    100: 1,  # compressionLevel
    201: 1,  # checksumFlag
    1002: 1,  # literalCompressionMode: always tried
    1008: 1,  # blockDelimiters: explicit
    1016: 1,  # repcodeResolution: offset 1 again and again costs nothing
}

leading_zeros: Any = numbers.leading_zeros
trailing_zeros: Any = numbers.trailing_zeros
_compress: Any = types.ExternalFunction(_COMPRESS, types.uintp(*[types.uintp] * 5))
_compress_sequences: Any = types.ExternalFunction(
    _COMPRESS_SEQUENCES, types.uintp(*[types.uintp] * 7)
)


@cache
def library() -> ctypes.CDLL:
    """The loaded library, with the types of all that is called of it."""
    pinned = sorted(Path(zstandard.__file__).parent.glob("_cffi*.so"))
    for name in (*map(str, pinned), "libzstd.so.1"):
        try:
            found = ctypes.CDLL(name)
            functions = {
                _COMPRESS: found.ZSTD_compress2,
                _COMPRESS_SEQUENCES: found.ZSTD_compressSequences,
            }
        except (OSError, AttributeError):
            continue
        _declare(found)
        for symbol, function in functions.items():
            address = ctypes.cast(function, ctypes.c_void_p).value
            llvmlite.binding.add_symbol(symbol, address)
        return found
    raise ConfigError("no libzstd with ZSTD_compressSequences: install Debian's libzstd1")


def _declare(found: ctypes.CDLL) -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ZSTD_createCCtx": (pointer, []),
        "ZSTD_freeCCtx": (size, [pointer]),
        "ZSTD_CCtx_setParameter": (size, [pointer, ctypes.c_int, ctypes.c_int]),
        "ZSTD_createDCtx": (pointer, []),
        "ZSTD_freeDCtx": (size, [pointer]),
        "ZSTD_decompressDCtx": (size, [pointer, pointer, size, pointer, size]),
        "ZSTD_versionString": (ctypes.c_char_p, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments


def zstd_version() -> str:
    """Version of the library that compresses."""
    version: bytes = library().ZSTD_versionString()
    return version.decode("ascii")


class CompressionContext:
    """A ZSTD_CCtx for `compress_planes`; one per thread."""

    def __init__(self) -> None:
        zstd = library()
        self.address: int = zstd.ZSTD_createCCtx() or 0
        if not self.address:
            raise MemoryError
        weakref.finalize(self, zstd.ZSTD_freeCCtx, self.address)
        for parameter, value in _PARAMETERS.items():
            if zstd.ZSTD_CCtx_setParameter(self.address, parameter, value) > 2**32:
                raise ConfigError(f"libzstd {zstd_version()} is too old: 1.5.4 is needed")
        self._try()

    def _try(self) -> None:
        """ConfigError unless frames are what they are to be: whole, and small where runs are."""
        planes = np.zeros((1, 4000), np.int8)
        planes[0, 1000:1007] = range(1, 8)
        out, size, start = np.empty((1, 8000), np.uint8), np.zeros(1, np.uint32), np.zeros(1, int)
        for search in (False, True):
            done = compress_planes(self.address, search, planes, out, start, size)
            frame = out[0, : size[0]].tobytes()
            if not done or len(frame) > 100 or _decompressed(frame) != planes.tobytes():
                raise ConfigError(
                    f"libzstd {zstd_version()} and numba do not work together as they are used "
                    "here: install the versions of requirements/lock.txt"
                )


def _decompressed(frame: bytes) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError:
        return b""


@kernel
def room_for(length: int) -> int:
    """Bytes that a frame of `length` bytes may take, and more."""
    return length + length // 128 + 512


@kernel
def compress_planes(
    context: int,
    search: bool,
    planes: NDArray[np.int8],
    out: NDArray[np.uint8],
    starts: NDArray[np.int64],
    sizes: NDArray[np.uint32],
) -> bool:
    """Write the frame of plane k to out[k], from starts[k] on; False for an error.

    libzstd writes in front of a buffer that is too small for a frame's header, so it is
    not called with less than `room_for` a plane.
    context: address of a ZSTD_CCtx. search: let libzstd search for matches. planes: (N, m).
    out: (N, room). starts: (N,). sizes: (N,), filled.
    """
    count, length = planes.shape
    words = (min(length, BLOCK) + 7) // 8
    padded = np.ones(words * 8 + 16, np.int8)
    turns = np.empty(words + 2, np.int64)
    # ZSTD_Sequence: offset, literals before the match, its length, rep; and one that ends a block
    matches = np.empty((length // SHORTEST_RUN + length // BLOCK + 3, 4), np.uint32)
    for k in range(count):
        room = out[k][starts[k] :]
        if room.size < room_for(length):
            return False
        if search:
            size = np.int64(
                _compress(
                    np.uint64(context),
                    room.ctypes.data,
                    np.uint64(room.size),
                    planes[k].ctypes.data,
                    np.uint64(length),
                )
            )
        else:
            found = find_all_runs(planes[k], padded, turns, matches)
            size = np.int64(
                _compress_sequences(
                    np.uint64(context),
                    room.ctypes.data,
                    np.uint64(room.size),
                    matches.ctypes.data,
                    np.uint64(found),
                    planes[k].ctypes.data,
                    np.uint64(length),
                )
            )
        if size <= 0:  # libzstd's error codes are the largest values of a size_t
            return False
        sizes[k] = size
    return True


@kernel
def find_all_runs(
    plane: NDArray[np.int8],
    padded: NDArray[np.int8],
    turns: NDArray[np.int64],
    matches: NDArray[np.uint32],
) -> int:
    """Fill `matches` block by block; returns how many.

    plane: (m,). padded: (16 or more beyond a block or plane, in words of 8), turns: (a word and 2
    more), scratch. matches: (M, 4), ZSTD_Sequence: offset, literals before, length, rep.
    """
    found = 0
    for start in range(0, plane.size, BLOCK):
        part = plane[start : start + BLOCK]
        padded[8] = 1
        for x in range(1, part.size):
            padded[8 + x] = part[x] ^ part[x - 1]
        used = padded[: 16 + (part.size + 7) // 8 * 8]
        for x in range(8 + part.size, used.size):
            used[x] = 1
        found += find_runs(used.view(np.uint64), turns, part.size, matches[found:])
    return found


@kernel
def find_runs(
    words: NDArray[np.uint64], turns: NDArray[np.int64], length: int, matches: NDArray[np.uint32]
) -> int:
    """Fill `matches` with the runs of a block: bytes that equal the one before them.

    words: (M,), `length` bytes, 0 where a byte of the block equals the one before it,
    between bytes that are not 0, 8 or more before and 1 or more behind. turns: scratch.
    Returns how many matches, with the one of length 0 that ends the block. A run that
    covers no whole word may be missed.

    Without branches in the first loop: where words turn to and from 0 cannot be predicted.
    """
    count = 0
    for j in range(1, words.size):
        turns[count] = j
        count += (words[j] == 0) != (words[j - 1] == 0)
    found, done = 0, 0
    for i in range(0, count, 2):
        before = np.int64(leading_zeros(words[turns[i] - 1])) >> 3
        behind = np.int64(trailing_zeros(words[turns[i + 1]])) >> 3
        first, end = 8 * (turns[i] - 1) - before, 8 * (turns[i + 1] - 1) + behind
        match = end - first
        if match >= SHORTEST_RUN:
            matches[found, 0] = 1
            matches[found, 1] = first - done
            matches[found, 2] = match
            matches[found, 3] = 0
            found += 1
            done = end
    matches[found, 0] = 0
    matches[found, 1] = length - done
    matches[found, 2] = 0
    matches[found, 3] = 0
    return found + 1
