"""One resized image in, its quantised spectral planes out; and back."""

import numpy as np
from numpy.typing import NDArray

from pipeline import transforms
from pipeline.options import Preparation
from pipeline.planes.kernels.project import FRACTION_BITS, GROUP

Planes = NDArray[np.int8]
Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]


class Splitter:
    """The split, transform, colour rotation and quantiser of one `Preparation` (splits > 1).

    planes = quantised((C · X · Rᵀ − offset) / step), with C over phases and R over colours.
    """

    def __init__(self, prep: Preparation) -> None:
        self.prep = prep
        self.matrix = transforms.matrix(prep.p, prep.transform)
        self.colour = transforms.colour_matrix(prep.channels)
        self._matrix32 = self.matrix.astype(np.float32)
        self._colour32 = self.colour.astype(np.float32)
        self.steps = transforms.steps(prep.p, prep.transform, prep.step)
        self.offsets = transforms.offsets(prep.p, prep.transform, prep.channels)
        self._columns = tuple(range(prep.p))
        self._fold = transforms.folding(prep.p, prep.transform)
        self._weights, self._rows, self._lengths = sparse(self.matrix, self._fold)
        self._values = np.empty(
            (prep.splits, prep.channels, prep.plane_shape[1] * prep.plane_shape[2]), np.int16
        )
        norm = transforms.COLOUR_NORM if prep.channels == 3 else np.ones(1)
        fixed = 2.0 * 2.0**FRACTION_BITS  # values are doubled, the matrix is fixed point
        self._scale = (1.0 / (fixed * np.outer(self.steps, norm))).astype(np.float32)

    def split(self, image: Pixels, planes: Planes, clipped: NDArray[np.int64]) -> None:
        """Fill `planes` (N, channels, h, w) from `image` (H, W, channels); count what clips."""
        from pipeline.planes.kernels.analyse import analyse
        from pipeline.planes.kernels.gather import gather

        gather(image, self._columns, self.prep.layout == "block", self._values)
        flat = planes.reshape(self._values.shape)
        analyse(self._values, self._fold, self._weights, self._rows, self._lengths,
                self._scale, flat, clipped)  # fmt: skip

    def empty(self) -> Planes:
        """An array for `split` to fill."""
        return np.empty((self.prep.splits, *self.prep.plane_shape), dtype=np.int8)

    def coefficients(self, image: Pixels) -> Values:
        """The planes before quantisation, in grey levels: (N, channels, h, w)."""
        c, h, w = self.prep.plane_shape
        phases = _phases(image, self.prep.p, self.prep.layout)
        rotated = phases @ self._colour32.T
        flat = self._matrix32 @ rotated.reshape(self.prep.splits, -1)
        return np.moveaxis(flat.reshape(self.prep.splits, h, w, c), 3, 1)

    def dequantise(self, planes: Planes) -> Values:
        """Grey levels of quantised planes: step·q + offset, (N, channels, h, w)."""
        scaled = planes * self.steps.astype(np.float32)[:, None, None, None]
        return np.asarray(scaled + self.offsets.astype(np.float32)[:, :, None, None])

    def rebuild(self, planes: Planes) -> Pixels:
        """The image (H, W, channels) uint8 that `planes` (N, channels, h, w) hold."""
        c, h, w = self.prep.plane_shape
        values = np.moveaxis(self.dequantise(planes), 1, 3).reshape(self.prep.splits, -1)
        phases = (self._matrix32.T @ values).reshape(self.prep.splits, h, w, c) @ self._colour32
        image = _merge(np.asarray(phases, np.float32), self.prep.p, self.prep.layout)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def sparse(
    matrix: NDArray[np.float64], pairs: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """`matrix` in fixed point, for values that `fold` has folded: weights that are not 0
    and their rows (both (N, M), each row padded with weights of 0 to a multiple of GROUP),
    and how many are in use (N,).
    """
    folded = matrix.copy()
    for a, b in pairs:
        one, other = folded[:, a].copy(), folded[:, b].copy()
        folded[:, a], folded[:, b] = (one + other) / 2, (one - other) / 2
    fixed = np.rint(folded * 2.0**FRACTION_BITS).astype(np.int32)
    used = np.count_nonzero(fixed, axis=1)
    lengths = -(-used // GROUP) * GROUP
    weights = np.zeros((len(matrix), lengths.max()), np.int32)
    rows = np.zeros(weights.shape, np.int64)
    for k, row in enumerate(fixed):
        rows[k, : used[k]] = np.flatnonzero(row)
        weights[k, : used[k]] = row[rows[k, : used[k]]]
    return weights, rows, lengths


def _phases(image: Pixels, p: int, layout: str) -> Values:
    """(p², h, w, channels) from (H, W, channels)."""
    size, _, channels = image.shape
    h = size // p
    if layout == "phase":
        cut = image.reshape(h, p, h, p, channels).transpose(1, 3, 0, 2, 4)
    else:
        cut = image.reshape(p, h, p, h, channels).transpose(0, 2, 1, 3, 4)
    return cut.reshape(p * p, h, h, channels).astype(np.float32)


def _merge(phases: Values, p: int, layout: str) -> Values:
    """The inverse of `_phases`."""
    _, h, w, channels = phases.shape
    cut = phases.reshape(p, p, h, w, channels)
    order = (2, 0, 3, 1, 4) if layout == "phase" else (0, 2, 1, 3, 4)
    return cut.transpose(order).reshape(h * p, w * p, channels)
