"""The heart of the offline stage: the phases of one image in, its N quantised planes out."""

from typing import Any

import numpy as np

from pipeline.planes.kernels.jit import kernel
from pipeline.planes.kernels.project import fold, weigh
from pipeline.planes.kernels.quantise import quantise_row


@kernel
def analyse(
    values: Any,
    pairs: Any,
    weights: Any,
    rows: Any,
    lengths: Any,
    scale: Any,
    planes: Any,
    clipped: Any,
) -> None:
    """Transform and quantise `values`, plane by plane.

    values: (channels, N, J) int16 as `gather` leaves them; overwritten. pairs, weights,
    rows: what `fold` and `weigh` take, weights (N, M) int32 fixed point and rows (N, M)
    with lengths (N,) of them in use. scale: (N, channels) float32. planes: (N, channels,
    J) int8, filled. clipped: (N,) int64, added to.
    """
    count, channels, size = planes.shape
    row = np.empty(size, np.int32)
    for c in range(channels):
        fold(values[c], pairs)
        for k in range(count):
            used = lengths[k]
            weigh(weights[k, :used], rows[k, :used], values[c], row)
            clipped[k] += quantise_row(row, scale[k, c], planes[k, c])
