"""The heart of the offline stage: the phases of one image in, its N quantised planes out."""

from typing import Any

import numpy as np

from pipeline.jit import kernel
from pipeline.planes.kernels.project import add_thirds, fold, weigh
from pipeline.planes.kernels.quantise import quantise_row


@kernel
def analyse(
    values: Any,
    pairs: Any,
    thirds: Any,
    weights: Any,
    rows: Any,
    lengths: Any,
    scale: Any,
    planes: Any,
    clipped: Any,
) -> None:
    """Transform and quantise `values`, plane by plane.

    values: (channels, N + L, J) int16, the first N of each channel as `gather` leaves them;
    overwritten. pairs, thirds, weights, rows: what `fold`, `add_thirds` and `weigh` take,
    weights (N, M) int32 fixed point and rows (N, M) with lengths (N,) of them in use.
    scale: (N, channels) float32. planes: (N, channels, J) int8, filled. clipped: (N,)
    int64, added to.
    """
    count, channels, size = planes.shape
    row = np.empty(size, np.int32)
    for c in range(channels):
        fold(values[c], pairs)
        add_thirds(values[c], thirds)
        for k in range(count):
            used = lengths[k]
            weigh(weights[k, :used], rows[k, :used], values[c], row)
            clipped[k] += quantise_row(row, scale[k, c], planes[k, c])
