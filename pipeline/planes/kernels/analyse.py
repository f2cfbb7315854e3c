"""The phases of one image in, its N quantised planes out: butterflies, weights, quantiser.

A fixed-point orthonormal transform across phases, exact until it is quantised. Integer sums do not
depend on their order, so flips of an image stay exact flips of its planes and the bytes are the
same on every machine. What is done, and why it is the transform: docs/method.md.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.jit import kernel
from pipeline.planes.kernels.lanes import (
    WIDTH,
    add_products,
    interleave_high,
    interleave_low,
    load,
    load_pair,
    store,
    zeros,
)

# Fraction bits of the matrix. The sum of |C|·|values| is at most √N·1020·2¹⁶, so N up
# to 1024 fits into an int32.
FRACTION_BITS = 16

TILE = 3  # planes that `weigh` makes at once: their sums stay in registers
PART = 1024  # sums of each that are made before they are quantised: they stay in the first cache

# Less than a half: a dead zone. At equal PSNR, by a smaller step, photographs then take
# 4.5 % fewer bytes.
ROUNDING = np.float32(0.4)
_TOP, _BOTTOM = np.int32(127), np.int32(-127)


@kernel
def analyse(
    values: NDArray[np.int16],
    pairs: NDArray[np.int64],
    triples: NDArray[np.int64],
    order: NDArray[np.int64],
    weights: NDArray[np.int16],
    rows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    scale: NDArray[np.float32],
    planes: NDArray[np.int8],
    clipped: NDArray[np.int64],
) -> None:
    """Transform and quantise `values`, TILE planes at a time.

    values: (channels, N + T, S), the first N of each channel as `gather` leaves them; overwritten.
    pairs: (L, 2), triples: (T, 4). order: (N,), the planes as the tiles make them. weights: (tiles,
    TILE, 2M), rows: (tiles, 2, M), of which lengths: (tiles,) are in use. scale: (N, channels).
    planes: (N, channels, J), filled, J at most S. clipped: (N,), added to.
    """
    count, channels, size = planes.shape
    sums = np.empty((TILE, PART), np.int32)
    for c in range(channels):
        butterflies(values[c], pairs)
        add_radix3(values[c], triples)
        for i in range(lengths.size):
            used, made = rows[i, :, : lengths[i]], order[i * TILE : min(i * TILE + TILE, count)]
            for start in range(0, size, PART):
                end = min(start + PART, size)
                weigh(weights[i], used[0], used[1], values[c], start, end, sums)
                for t, k in enumerate(made):
                    out = planes[k, c, start:end]
                    clipped[k] += quantise_row(sums[t, : out.size], scale[k, c], out)


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
    weights: NDArray[np.int16],
    firsts: NDArray[np.int64],
    seconds: NDArray[np.int64],
    values: NDArray[np.int16],
    start: int,
    end: int,
    out: NDArray[np.int32],
) -> None:
    """out[t, j − start] = Σᵢ weights[t, 2i]·values[firsts[i], j] + weights[t, 2i + 1]·
    values[seconds[i], j] for t < 3 and start ≤ j < end, `WIDTH` positions at a time.

    weights: (3, 2m or more), firsts, seconds: (m,), values: (N, J), out: (3, S); J and S hold whole
    WIDTHs: beyond `end`, too, something is read and written.
    """
    size = values.shape[1]
    flat = values.reshape(-1)
    one, two, three = weights[0], weights[1], weights[2]
    for j in range(start, end, WIDTH):
        one_low, one_high = zeros(), zeros()
        two_low, two_high = zeros(), zeros()
        three_low, three_high = zeros(), zeros()
        for i, (first, second) in enumerate(zip(firsts, seconds)):  # noqa: B905 - numba
            a, b = load(flat, first * size + j), load(flat, second * size + j)
            low, high = interleave_low(a, b), interleave_high(a, b)
            pair = load_pair(one, 2 * i)
            one_low = add_products(one_low, low, pair)
            one_high = add_products(one_high, high, pair)
            pair = load_pair(two, 2 * i)
            two_low = add_products(two_low, low, pair)
            two_high = add_products(two_high, high, pair)
            pair = load_pair(three, 2 * i)
            three_low = add_products(three_low, low, pair)
            three_high = add_products(three_high, high, pair)
        store(one_low, one_high, out[0], j - start)
        store(two_low, two_high, out[1], j - start)
        store(three_low, three_high, out[2], j - start)


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
