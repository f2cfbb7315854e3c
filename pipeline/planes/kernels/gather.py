"""The phases of an image, rotated in colour: uint8 in, exact int16 out."""

from typing import Any

import numpy as np

from pipeline.planes.kernels.jit import kernel


@kernel
def gather(image: Any, columns: Any, block: bool, values: Any) -> None:
    """Fill `values` (p², channels, h·w) int16 with the phases of `image`, row by row.

    image: (H, W, channels) uint8. columns: 0 … p−1 as a tuple, so that p is known when
    this is compiled: it is the stride of the loop that costs most. `block`: contiguous
    blocks in place of phases.
    """
    p = len(columns)
    h, w = image.shape[0] // p, image.shape[1] // p
    row = np.empty((image.shape[2], p * w), np.int16)
    for y in range(h):
        for r in range(p):
            rotate_row(image[r * h + y if block else y * p + r], row)
            for c in range(row.shape[0]):
                spread(row[c], columns, block, values[r * p : r * p + p, c], y * w)


@kernel
def rotate_row(pixels: Any, out: Any) -> None:
    """Doubled and centred on mid grey: 2R+2G+2B−765, 2R−2B, 2R−4G+2B for RGB, 2x−255 for grey.

    pixels: (W, channels) uint8, out: (channels, W) int16.
    """
    flat = pixels.reshape(-1)
    if out.shape[0] == 1:
        for x in range(flat.size):
            out[0, x] = np.int16(2 * np.int32(flat[x]) - 255)
    else:
        first, second, third = out[0], out[1], out[2]
        for x in range(first.size):
            red, green = np.int32(flat[3 * x]), np.int32(flat[3 * x + 1])
            blue = np.int32(flat[3 * x + 2])
            first[x] = np.int16(2 * (red + green + blue) - 765)
            second[x] = np.int16(2 * (red - blue))
            third[x] = np.int16(2 * (red - 2 * green + blue))


@kernel
def spread(row: Any, columns: Any, block: bool, out: Any, start: int) -> None:
    """out[c, start + x] = row[x·p + c], or row[c·w + x] for blocks. row: (p·w,), out: (p, …)."""
    p = len(columns)
    w = row.size // p
    if block:
        for c in range(p):
            for x in range(w):
                out[c, start + x] = row[c * w + x]
    else:
        for x in range(w):
            for c in range(p):
                out[c, start + x] = row[x * p + c]
