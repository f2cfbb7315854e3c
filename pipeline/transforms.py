"""(p, transform) in; matrices, signs of exact flips, quantiser steps and offsets out.

Source of the method: Liu, Wang, Yuan, Han, "Spectral Tensor Layers for
Communication-Free Distributed Deep Learning". Notation: an image has phases X[n],
n = r·p + c; plane k is Y[k] = Σₙ C[k, n]·X[n] with C (N, N) orthonormal, N = p².
"""

import math

import numpy as np
from numpy.typing import NDArray

# Rows: achromatic axis, red-blue, green against red and blue. Orthonormal. Their
# integer forms (1, 1, 1), (1, 0, -1), (1, -2, 1) are what the kernels compute with.
COLOUR_INTEGER = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=np.int32)
COLOUR_NORM = np.sqrt((COLOUR_INTEGER.astype(np.float64) ** 2).sum(axis=1))

MID_GREY = 127.5

# Largest steps (in half units) at which 395 ImageNet photographs keep at least 40 dB pooled
# (`benchmarks/size.py`), by p from 2 up; the last one serves every larger p.
_STEPS = {
    "dct": (10.5, 11.5),
    "dct2": (11.0, 12.0, 12.0, 12.5, 13.0),
    "none": (8.5,),
}


# Grey images have no quiet colour planes to gain from: 40 dB at a high rate is a step of 8.3.
_GREY_STEP = 8.0


def default_step(p: int, transform: str, channels: int) -> float:
    """Quantiser step that keeps photographs at ≥ 40 dB pooled; 0 for the unsplit image."""
    if p == 1:
        return 0.0
    if channels == 1:
        return _GREY_STEP
    table = _STEPS[transform]
    return table[min(p - 2, len(table) - 1)]


def dct_matrix(n: int) -> NDArray[np.float64]:
    """Orthonormal DCT-II, shape (n, n): row k is the k-th basis vector."""
    k, i = np.arange(n)[:, None], np.arange(n)[None, :]
    matrix = np.sqrt(2.0 / n) * np.cos(np.pi * k * (2 * i + 1) / (2 * n))
    matrix[0] = 1.0 / math.sqrt(n)
    return np.asarray(matrix)


def matrix(p: int, transform: str) -> NDArray[np.float64]:
    """C, shape (p², p²), orthonormal."""
    if transform == "dct":
        return dct_matrix(p * p)
    if transform == "dct2":
        return np.asarray(np.kron(dct_matrix(p), dct_matrix(p)))
    return np.eye(p * p)


def colour_matrix(channels: int) -> NDArray[np.float64]:
    """R, orthonormal, shape (channels, channels): rotated = R @ rgb. Grey is left as it is."""
    if channels == 1:
        return np.eye(1)
    return np.asarray(COLOUR_INTEGER / COLOUR_NORM[:, None])


def steps(p: int, transform: str, step: float) -> NDArray[np.float64]:
    """Quantiser step of each plane, shape (p²,).

    One step for all; plane 0 of a DCT gets a larger one where its mean, which spans
    p·255·√3, would not fit into the 255 levels of an int8 without −128.
    """
    result = np.full(p * p, step, dtype=np.float64)
    if transform != "none":
        result[0] = max(step, p * 2 * MID_GREY * math.sqrt(3) / 254)
    return result


def offsets(p: int, transform: str, channels: int) -> NDArray[np.float64]:
    """What an all-mid-grey image gives, shape (p², channels): value = step·q + offset."""
    planes = matrix(p, transform).sum(axis=1)
    planes[np.abs(planes) < 1e-9] = 0.0
    axes = colour_matrix(channels).sum(axis=1)
    axes[np.abs(axes) < 1e-9] = 0.0
    return np.asarray(MID_GREY * np.outer(planes, axes))


def butterflies(p: int, transform: str) -> NDArray[np.int64]:
    """Pairs (a, b) of phases whose sum and difference replace them, in this order: (L, 2).

    Rows of C are symmetric or antisymmetric under the mirrors taken here, so that half of the
    weights on what replaces the phases are 0 (docs/method.md, 3.1). `dct2`: both mirrors of (r, c).
    `dct`: n → N−1−n, and that of the sums once more where their number is even.
    """
    n = p * p
    pairs: list[tuple[int, int]] = []
    if transform == "dct2":
        pairs += [(r * p + c, (p - 1 - r) * p + c) for r in range(p // 2) for c in range(p)]
        pairs += [(r * p + c, r * p + p - 1 - c) for r in range(p) for c in range(p // 2)]
    elif transform == "dct":
        pairs += [(i, n - 1 - i) for i in range(n // 2)]
        if n % 2 == 0:
            pairs += [(i, n // 2 - 1 - i) for i in range(n // 4)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def radix3(p: int, transform: str) -> NDArray[np.int64]:
    """What may stand for three phases after the butterflies: (T, 4) as (a, b, c, s), where the row
    added is a + s·(b + c).

    A `dct` row k divisible by 3 weighs them alike (docs/method.md, 3.2). For p divisible by 6.
    """
    n = p * p
    found: list[tuple[int, int, int, int]] = []
    if transform == "dct" and p % 6 == 0:
        for end, third in ((n - 1, n // 3), (n // 2 - 1, n // 6)):  # differences lie backwards
            found += [
                (end - i, end + 1 - third + i, end - third - i, -1) for i in range(third // 2)
            ]
        third = n // 12
        found += [(i, 2 * third - 1 - i, 2 * third + i, 1) for i in range(third)]
    return np.array(found, np.int64).reshape(-1, 4)


def flip_sign(p: int, transform: str, k: int, flip: str) -> int:
    """±1 if flipping an image equals ± the flip of its plane k; 0 where it does not.

    `flip` is "horizontal", "vertical" or "rotate180". `dct2`: all three, signs
    (−1)^(k mod p), (−1)^(k div p) and their product. `dct`: the rotation for every k,
    (−1)^k; the horizontal flip for k divisible by p, (−1)^(k/p); the vertical flip,
    which is rotation after horizontal flip, for the same k. `none`: a flip swaps
    phases, so none is exact unless the phase is its own mirror (odd p). Exact also
    after quantisation, which is symmetric about 0, and for both layouts.
    """
    u, v = divmod(k, p)
    if transform == "dct2":
        return _sign({"horizontal": v, "vertical": u, "rotate180": u + v}[flip])
    if transform == "dct":
        if flip == "rotate180":
            return _sign(k)
        if v:
            return 0
        return _sign(u if flip == "horizontal" else u + k)
    mirror = {"horizontal": v, "vertical": u}.get(flip)
    middle = 2 * mirror == p - 1 if mirror is not None else 2 * u == p - 1 == 2 * v
    return 1 if middle else 0


def _sign(exponent: int) -> int:
    return -1 if exponent % 2 else 1
