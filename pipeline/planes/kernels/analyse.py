"""The phases of one image in, its N quantised planes out: butterflies, weights, quantiser.

A fixed-point orthonormal transform across phases, exact until it is quantised. Integer sums do not
depend on their order, so flips of an image stay exact flips of its planes and the bytes are the
same on every machine. What is done, and why it is the transform: docs/method.md.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.jit import kernel

# Fraction bits of the matrix. The sum of |C|·|values| is at most √N·1020·2¹⁶, so N up
# to 1024 fits into an int32.
FRACTION_BITS = 16

GROUP = 3  # rows that `weigh` adds in one pass

# Less than a half: a dead zone. At equal PSNR, by a smaller step, photographs then take
# 4.5 % fewer bytes.
ROUNDING = np.float32(0.4)
_TOP, _BOTTOM = np.int32(127), np.int32(-127)


@kernel
def analyse(
    values: NDArray[np.int16],
    pairs: NDArray[np.int64],
    triples: NDArray[np.int64],
    weights: NDArray[np.int32],
    rows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    scale: NDArray[np.float32],
    planes: NDArray[np.int8],
    clipped: NDArray[np.int64],
) -> None:
    """Transform and quantise `values`, plane by plane.

    values: (channels, N + T, J), the first N of each channel as `gather` leaves them; overwritten.
    pairs: (L, 2), triples: (T, 4). weights, rows: (N, M), of which lengths: (N,) are in use. scale:
    (N, channels). planes: (N, channels, J), filled. clipped: (N,), added to.
    """
    count, channels, size = planes.shape
    row = np.empty(size, np.int32)
    for c in range(channels):
        butterflies(values[c], pairs)
        add_radix3(values[c], triples)
        for k in range(count):
            used = lengths[k]
            weigh(weights[k, :used], rows[k, :used], values[c], row)
            clipped[k] += quantise_row(row, scale[k, c], planes[k, c])


@kernel
def butterflies(values: NDArray[np.int16], pairs: NDArray[np.int64]) -> None:
    """values[a], values[b] = their sum, their difference, for each (a, b) of `pairs` in turn.

    values: (N, J), at most 1020 in size, so that up to 5 turns fit. pairs: (L, 2).
    """
    for i in range(pairs.shape[0]):
        first, second = values[pairs[i, 0]], values[pairs[i, 1]]
        for j in range(first.size):
            a, b = first[j], second[j]
            first[j] = a + b
            second[j] = a - b


@kernel
def add_radix3(values: NDArray[np.int16], triples: NDArray[np.int64]) -> None:
    """The last rows: values[N + i] = values[a] + s·(values[b] + values[c]), for each
    (a, b, c, s) of `triples`: (T, 4). values: (N + T, J), after the butterflies.
    """
    first = values.shape[0] - triples.shape[0]
    for i in range(triples.shape[0]):
        a, b, c = values[triples[i, 0]], values[triples[i, 1]], values[triples[i, 2]]
        out = values[first + i]
        if triples[i, 3] > 0:
            for j in range(out.size):
                out[j] = a[j] + b[j] + c[j]
        else:
            for j in range(out.size):
                out[j] = a[j] - b[j] - c[j]


@kernel
def weigh(
    weights: NDArray[np.int32],
    rows: NDArray[np.int64],
    values: NDArray[np.int16],
    out: NDArray[np.int32],
) -> None:
    """out[j] = Σᵢ weights[i]·values[rows[i], j], `GROUP` rows a pass.

    weights, rows: (M,), M a multiple of GROUP. values: (N, J), out: (J,).
    """
    for i in range(0, weights.size, 3):
        a, b, c = weights[i], weights[i + 1], weights[i + 2]
        va, vb, vc = values[rows[i]], values[rows[i + 1]], values[rows[i + 2]]
        for j in range(out.size):
            total = a * va[j] + b * vb[j] + c * vc[j]
            if i:
                total += out[j]
            out[j] = total


@kernel
def quantise_row(values: NDArray[np.int32], scale: np.float32, out: NDArray[np.int8]) -> int:
    """out[x] = values[x]·scale, its size plus ROUNDING cut to an integer within ±127.

    values: (J,), scale: fixed point to quantiser steps, out: (J,). Returns how many were outside.
    Symmetric about 0: −values give −out. −128 is never written, it would have no mirror.
    """
    factor = np.float32(scale)
    clipped = np.int32(0)  # of 4 bytes, as what it counts: wider ones halve the speed
    for x in range(values.size):
        value = np.float32(values[x]) * factor
        whole = np.int32(value + np.copysign(ROUNDING, value))
        kept = min(max(whole, _BOTTOM), _TOP)
        clipped = np.int32(clipped + np.int32(whole != kept))
        out[x] = np.int8(kept)
    return int(clipped)
