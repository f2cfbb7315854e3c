"""A fixed-point orthonormal transform across phases: int32 in, int32 out, exact.

Integer sums do not depend on their order, so flips of an image stay exact flips of
its planes and the bytes are the same on every machine.
"""

from typing import Any

from pipeline.kernels.jit import kernel

# Fraction bits of the matrix. The sum of |C|·|values| is at most √N·1020·2¹⁶, so N up
# to 1024 fits into an int32.
FRACTION_BITS = 16


@kernel
def fold(values: Any, even: Any, odd: Any) -> None:
    """even[n] = values[n] + values[N−1−n], odd[n] = the difference; the middle stays alone.

    values: (N, J) int32; even, odd: (ceil(N/2), J) int32.
    """
    last = values.shape[0] - 1
    for n in range(even.shape[0]):
        mirror = last - n
        if mirror == n:
            for j in range(values.shape[1]):
                even[n, j] = values[n, j]
                odd[n, j] = 0
        else:
            for j in range(values.shape[1]):
                even[n, j] = values[n, j] + values[mirror, j]
                odd[n, j] = values[n, j] - values[mirror, j]


@kernel
def weigh(weights: Any, values: Any, out: Any) -> None:
    """out[j] = Σₙ weights[n]·values[n, j], four rows a pass. weights: (M,), values: (M, J)."""
    full = weights.shape[0] // 4 * 4
    for j in range(out.shape[0]):
        out[j] = 0
    for n in range(0, full, 4):
        a, b, c, d = weights[n], weights[n + 1], weights[n + 2], weights[n + 3]
        v0, v1, v2, v3 = values[n], values[n + 1], values[n + 2], values[n + 3]
        for j in range(out.shape[0]):
            out[j] += a * v0[j] + b * v1[j] + c * v2[j] + d * v3[j]
    for n in range(full, weights.shape[0]):
        a = weights[n]
        v0 = values[n]
        for j in range(out.shape[0]):
            out[j] += a * v0[j]
