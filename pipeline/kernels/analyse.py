"""The fused kernel of the offline stage: one image in, its N quantised planes out."""

from typing import Any

import numpy as np

from pipeline.kernels.gather import gather_row
from pipeline.kernels.jit import kernel
from pipeline.kernels.project import fold, weigh
from pipeline.kernels.quantise import quantise_row


@kernel
def analyse(
    image: Any, weights: Any, parity: Any, scale: Any, block: bool, planes: Any, clipped: Any
) -> None:
    """Split, rotate, transform and quantise `image`; memory is touched row by row.

    image: (H, W, channels) uint8. weights: (N, N) int32 fixed point. parity: (N,) int8,
    +1 / −1 where weights[k] is (anti)symmetric, 0 where it is neither. scale:
    (N, channels) float32. planes: (N, channels, h, w) int8, filled. clipped: (N,)
    int64, added to.
    """
    count, channels, h, w = planes.shape
    p = image.shape[0] // h
    values = np.empty((count, channels, w), dtype=np.int32)
    flat = values.reshape(count, channels * w)
    even = np.empty(((count + 1) // 2, channels * w), dtype=np.int32)
    odd = np.empty_like(even)
    row = np.empty(channels * w, dtype=np.int32)
    for y in range(h):
        gather_row(image, y, p, block, values)
        fold(flat, even, odd)
        for k in range(count):
            if parity[k] == 0:
                weigh(weights[k], flat, row)
            else:
                weigh(weights[k, : even.shape[0]], even if parity[k] > 0 else odd, row)
            for c in range(channels):
                clipped[k] += quantise_row(row[c * w : (c + 1) * w], scale[k, c], planes[k, c, y])
