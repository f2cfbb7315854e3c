"""One row of every phase of an image, rotated in colour: uint8 in, exact int32 out."""

from typing import Any

from pipeline.kernels.jit import kernel


@kernel
def gather_row(image: Any, y: int, p: int, block: bool, out: Any) -> None:
    """Fill `out` (p², channels, w) int32 with row `y` of all p² phases.

    image: (H, W, channels) uint8. Values are doubled and centred on mid grey:
    2R+2G+2B−765, 2R−2B, 2R−4G+2B for RGB, 2x−255 for grey. `block`: contiguous
    blocks in place of phases.
    """
    w = image.shape[1] // p
    h = image.shape[0] // p
    for r in range(p):
        row = image[r * h + y] if block else image[y * p + r]
        for c in range(p):
            n = r * p + c
            first, stride = (c * w, 1) if block else (c, p)
            if image.shape[2] == 1:
                for x in range(w):
                    out[n, 0, x] = 2 * row[first + x * stride, 0] - 255
            else:
                for x in range(w):
                    red = 2 * row[first + x * stride, 0]
                    green = 2 * row[first + x * stride, 1]
                    blue = 2 * row[first + x * stride, 2]
                    out[n, 0, x] = red + green + blue - 765
                    out[n, 1, x] = red - blue
                    out[n, 2, x] = red - 2 * green + blue
