"""int8 planes in, zstd frames out.

The planes of a DCT hold few matches worth having but runs of equal bytes, mostly zeros. Those
are found here and only coded by libzstd: in about half the time, and frames are smaller.
"""

from typing import Any

import numpy as np
from numba import types
from numba.cpython.unsafe import numbers

from pipeline.planes.kernels.jit import kernel
from pipeline.zstd import COMPRESS, COMPRESS_SEQUENCES

leading_zeros: Any = numbers.leading_zeros
trailing_zeros: Any = numbers.trailing_zeros

BLOCK = 1 << 17  # the most that a zstd block may hold, bytes
SHORTEST_RUN = 12  # shorter ones cost more as a match than as literals

_compress: Any = types.ExternalFunction(COMPRESS, types.uintp(*[types.uintp] * 5))
_compress_sequences: Any = types.ExternalFunction(
    COMPRESS_SEQUENCES, types.uintp(*[types.uintp] * 7)
)


@kernel
def room_for(length: int) -> int:
    """Bytes that a frame of `length` bytes may take, and more."""
    return length + length // 128 + 512


@kernel
def compress_planes(
    context: int, search: bool, planes: Any, out: Any, starts: Any, sizes: Any
) -> bool:
    """Write the frame of plane k to out[k], from starts[k] on; False for an error.

    libzstd writes in front of a buffer that is too small for a frame's header, so it is
    not called with less than `room_for` a plane.
    context: address of a ZSTD_CCtx. search: let libzstd search for matches. planes: (N, m)
    int8. out: (N, room) uint8. starts: (N,) int64. sizes: (N,) uint32, filled.
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
def find_all_runs(plane: Any, padded: Any, turns: Any, matches: Any) -> int:
    """Fill `matches` block by block; returns how many."""
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
def find_runs(words: Any, turns: Any, length: int, matches: Any) -> int:
    """Fill `matches` with the runs of a block: bytes that equal the one before them.

    words: (M,) uint64, `length` bytes, 0 where a byte of the block equals the one before it,
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
