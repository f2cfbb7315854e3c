"""First and second moments over int8 planes or uint8 pixels, exact, for the manifest."""

from typing import Any

from pipeline.kernels.jit import kernel


@kernel
def add_moments(planes: Any, first: Any, second: Any) -> None:
    """Add Σ q_a and Σ q_a·q_b over pixels, for every plane and pair of channels.

    planes: (N, C, h, w) integers. first: (N, C), second: (N, C, C), both int64.
    Second moments across channels let the reader normalise after it has undone the
    colour rotation. A row of 4096 squares of 255 fits into an int32.
    """
    channels = planes.shape[1]
    for k in range(planes.shape[0]):
        for y in range(planes.shape[2]):
            for a in range(channels):
                row_a = planes[k, a, y]
                total = 0
                for x in range(row_a.shape[0]):
                    total += row_a[x]
                first[k, a] += total
                for b in range(a, channels):
                    row_b = planes[k, b, y]
                    product = 0
                    for x in range(row_a.shape[0]):
                        product += int(row_a[x]) * int(row_b[x])
                    second[k, a, b] += product
                    if a != b:
                        second[k, b, a] += product
