"""The phases of an image, rotated in colour: uint8 in, exact int16 out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.jit import kernel

Pixels = NDArray[Any]  # uint32: red, green, blue and a byte that is not looked at; or grey, int8
Values = NDArray[np.int16]


@kernel
def gather(
    image: Pixels, columns: tuple[int, ...], block: bool, phases: Pixels, values: Values
) -> None:
    """Fill the first p² rows of `values`, (channels, …, h·w or more), with the phases of `image`.

    image: (H, W). columns: 0 … p−1 as a tuple, so that p is known when this is compiled: it is the
    stride of the loop that costs most. `block`: contiguous blocks in place of phases. phases:
    (p, h·w), scratch: the pixels of p phases, end to end, so that what follows runs over long rows.
    """
    p = len(columns)
    h, w = image.shape[0] // p, image.shape[1] // p
    size = h * w
    for r in range(p):
        for y in range(h):
            if block:
                cut(image[r * h + y], y, phases)
            else:
                spread(image[y * p + r], columns, phases[:, y * w : (y + 1) * w])
        for c in range(p):
            n = r * p + c
            if values.shape[0] == 1:
                centre(phases[c], values[0, n, :size])
            else:
                rotate(phases[c], values[0, n, :size], values[1, n, :size], values[2, n, :size])


@kernel
def spread(row: Pixels, columns: tuple[int, ...], out: Pixels) -> None:
    """out[c, x] = row[x·p + c]. row: (p·w,), out: (p, w)."""
    p = len(columns)
    for x in range(out.shape[1]):
        for c in range(p):
            out[c, x] = row[x * p + c]


@kernel
def cut(row: Pixels, y: int, phases: Pixels) -> None:
    """Stretches of w to row y of phases[0] … phases[p − 1] in turn. row: (p·w,), phases: (p, h·w).

    In a loop of its own: with the assignment of slices numba compiles its error message, for 1.4 s.
    """
    w = row.size // phases.shape[0]
    for c in range(phases.shape[0]):
        out = phases[c, y * w : (y + 1) * w]
        for x in range(w):
            out[x] = row[c * w + x]


@kernel
def centre(grey: Pixels, out: Values) -> None:
    """Doubled and centred on mid grey: 2x−255. grey: (J,), out: (J,)."""
    for x in range(out.size):
        out[x] = np.int16(2 * np.int16(np.uint8(grey[x])) - 255)


@kernel
def rotate(colour: Pixels, first: Values, second: Values, third: Values) -> None:
    """Doubled and centred on mid grey: 2R+2G+2B−765, 2R−2B, 2R−4G+2B.

    colour, first, second, third: (J,). In 16 bits at each step, or half as many fit a register.
    """
    byte, two = np.uint32(255), np.int16(2)
    for x in range(first.size):
        pixel = colour[x]
        red = np.int16(pixel & byte)
        green = np.int16((pixel >> np.uint32(8)) & byte)
        blue = np.int16((pixel >> np.uint32(16)) & byte)
        purple = np.int16(red + blue)
        first[x] = np.int16(np.int16(np.int16(purple + green) * two) - np.int16(765))
        second[x] = np.int16(np.int16(red - blue) * two)
        third[x] = np.int16(np.int16(purple - np.int16(green * two)) * two)
