"""First and second moments over int8 planes or uint8 pixels, exact, for the manifest."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.jit import kernel

PIECE = 32768  # as many squares of 255 fit into an int32


@kernel
def add_moments(planes: NDArray[Any], first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
    """Add Σ q_a and Σ q_a·q_b over pixels, for every plane and pair of channels.

    planes: (N, C, J), int8 or uint8. first: (N, C), second: (N, C, C).
    Second moments across channels let the reader normalise after it has undone the
    colour rotation.
    """
    count, channels, size = planes.shape
    for k in range(count):
        for start in range(0, size, PIECE):
            piece = planes[k, :, start : start + PIECE]
            for a in range(channels):
                first[k, a] += _sum(piece[a])
                for b in range(a, channels):
                    product = _dot(piece[a], piece[b])
                    second[k, a, b] += product
                    if a != b:
                        second[k, b, a] += product


@kernel
def _sum(values: NDArray[Any]) -> Any:
    """values: (J,), int8 or uint8, at most PIECE. The sum, int32."""
    total = np.int32(0)
    for x in range(values.size):
        total = np.int32(total + values[x])
    return total


@kernel
def _dot(one: NDArray[Any], other: NDArray[Any]) -> Any:
    """one, other: (J,), int8 or uint8, at most PIECE. Their product, int32."""
    total = np.int32(0)
    for x in range(one.size):
        total = np.int32(total + np.int32(one[x]) * np.int32(other[x]))
    return total
