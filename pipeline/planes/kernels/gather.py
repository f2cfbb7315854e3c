"""The phases of an image, rotated in colour: uint8 in, exact int16 out."""

import numpy as np
from numpy.typing import NDArray

from pipeline.jit import kernel

Bytes = NDArray[np.uint8]
Values = NDArray[np.int16]


@kernel
def gather(
    image: Bytes, columns: tuple[int, ...], block: bool, rows: Values, values: Values
) -> None:
    """Fill the first p² rows of `values`, (channels, …, h·w), with the phases of `image`.

    image: (H, W, channels). columns: 0 … p−1 as a tuple, so that p is known when
    this is compiled: it is the stride of the loop that costs most. `block`: contiguous
    blocks in place of phases. rows: (channels, p, h·W), scratch: rows of the image that
    hold the same phases lie end to end there, so that `spread` runs over long ones.
    """
    p = len(columns)
    h, width = image.shape[0] // p, image.shape[1]
    for r in range(p):
        for y in range(h):
            pixels = image[r * h + y if block else y * p + r]
            start, end = y * width, (y + 1) * width
            if rows.shape[0] == 1:
                centre(pixels, rows[0, r, start:end])
            else:
                rotate(pixels, rows[0, r, start:end], rows[1, r, start:end], rows[2, r, start:end])
    for c in range(values.shape[0]):
        for r in range(p):
            out = values[c, r * p : r * p + p]
            if block:
                cut(rows[c, r], out, width // p)
            else:
                spread(rows[c, r], columns, out)


@kernel
def centre(grey: Bytes, out: Values) -> None:
    """Doubled and centred on mid grey: 2x−255. grey: (W, 1), out: (W,)."""
    values = grey.reshape(-1)
    for x in range(out.size):
        out[x] = np.int16(2 * np.int32(values[x]) - 255)


@kernel
def rotate(rgb: Bytes, first: Values, second: Values, third: Values) -> None:
    """Doubled and centred on mid grey: 2R+2G+2B−765, 2R−2B, 2R−4G+2B.

    rgb: (W, 3); first, second, third: (W,), contiguous, or this takes twice as long.
    """
    flat = rgb.reshape(-1)
    for x in range(first.size):
        red, green = np.int32(flat[3 * x]), np.int32(flat[3 * x + 1])
        blue = np.int32(flat[3 * x + 2])
        first[x] = np.int16(2 * (red + green + blue) - 765)
        second[x] = np.int16(2 * (red - blue))
        third[x] = np.int16(2 * (red - 2 * green + blue))


@kernel
def spread(row: Values, columns: tuple[int, ...], out: Values) -> None:
    """out[c, x] = row[x·p + c]. row: (p·J,), out: (p, J), both contiguous."""
    p = len(columns)
    for x in range(out.shape[1]):
        for c in range(p):
            out[c, x] = row[x * p + c]


@kernel
def cut(row: Values, out: Values, w: int) -> None:
    """Stretches of `w` to out[0] … out[p − 1] in turn. row: (p·J,), out: (p, J)."""
    p = out.shape[0]
    for i in range(out.shape[1] // w):
        for c in range(p):
            start = (i * p + c) * w
            out[c, i * w : (i + 1) * w] = row[start : start + w]
