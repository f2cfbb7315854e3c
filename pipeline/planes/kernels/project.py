"""A fixed-point orthonormal transform across phases, exact: int16 in, int32 out.

Integer sums do not depend on their order, so flips of an image stay exact flips of
its planes and the bytes are the same on every machine. Sums and differences of
mirrored phases are taken once for all planes, and those of three for every third; most
weights then are 0.
"""

from typing import Any

from pipeline.jit import kernel

# Fraction bits of the matrix. The sum of |C|·|values| is at most √N·1020·2¹⁶, so N up
# to 1024 fits into an int32.
FRACTION_BITS = 16

GROUP = 3  # rows that `weigh` adds in one pass


@kernel
def fold(values: Any, pairs: Any) -> None:
    """values[a], values[b] = their sum, their difference, for each (a, b) of `pairs` in turn.

    values: (N, J) int16, at most 1020 in size, so that up to 5 turns fit. pairs: (L, 2).
    """
    for i in range(pairs.shape[0]):
        first, second = values[pairs[i, 0]], values[pairs[i, 1]]
        for j in range(first.size):
            a, b = first[j], second[j]
            first[j] = a + b
            second[j] = a - b


@kernel
def add_thirds(values: Any, thirds: Any) -> None:
    """The last rows: values[N + i] = values[a] + s·(values[b] + values[c]), for each
    (a, b, c, s) of `thirds`, (L, 4). values: (N + L, J) int16, folded.
    """
    first = values.shape[0] - thirds.shape[0]
    for i in range(thirds.shape[0]):
        a, b, c = values[thirds[i, 0]], values[thirds[i, 1]], values[thirds[i, 2]]
        out = values[first + i]
        if thirds[i, 3] > 0:
            for j in range(out.size):
                out[j] = a[j] + b[j] + c[j]
        else:
            for j in range(out.size):
                out[j] = a[j] - b[j] - c[j]


@kernel
def weigh(weights: Any, rows: Any, values: Any, out: Any) -> None:
    """out[j] = Σᵢ weights[i]·values[rows[i], j], `GROUP` rows a pass.

    weights, rows: (M,), M a multiple of GROUP. values: (N, J) int16, out: (J,) int32.
    """
    for i in range(0, weights.size, 3):
        a, b, c = weights[i], weights[i + 1], weights[i + 2]
        va, vb, vc = values[rows[i]], values[rows[i + 1]], values[rows[i + 2]]
        for j in range(out.size):
            total = a * va[j] + b * vb[j] + c * vc[j]
            if i:
                total += out[j]
            out[j] = total
