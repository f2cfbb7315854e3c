"""Fixed-point coefficients in, int8 within ±127 out, with what clipped."""

from typing import Any

import numpy as np

from pipeline.kernels.jit import kernel


@kernel
def quantise_row(values: Any, scale: float, out: Any) -> int:
    """out[x] = round(values[x]·scale) within ±127; returns how many were outside.

    values: (w,) int32, scale: float32 (fixed point to quantiser steps), out: (w,) int8.
    Rounds half to even, which is symmetric: −values give −out. −128 is never written,
    it would have no mirror.
    """
    factor = np.float32(scale)
    top = np.float32(127)
    clipped = 0
    for x in range(values.shape[0]):
        value = np.rint(np.float32(values[x]) * factor)
        clipped += abs(value) > top
        out[x] = np.int8(min(max(value, -top), top))
    return clipped
