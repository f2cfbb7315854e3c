"""One resized image in, its quantised spectral planes out; and back."""

import numpy as np
from numpy.typing import NDArray

from pipeline import transforms
from pipeline.planes.kernels.analyse import FRACTION_BITS, TILE, analyse
from pipeline.planes.kernels.gather import gather
from pipeline.planes.kernels.lanes import WIDTH
from pipeline.preparation import Preparation

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
        self._pairs = transforms.butterflies(prep.p, prep.transform)
        self._triples = transforms.radix3(prep.p, prep.transform)
        self._tiles = tiles(self.matrix, self._pairs, self._triples)
        size = prep.plane_shape[1] * prep.plane_shape[2]
        padded = -(-size // WIDTH) * WIDTH
        rows = prep.splits + len(self._triples)
        self._values = np.zeros((prep.channels, rows, padded), np.int16)
        self._phases = np.empty((prep.p, size), np.uint32 if prep.channels == 3 else np.int8)
        norm = transforms.COLOUR_NORM if prep.channels == 3 else np.ones(1)
        fixed = 2.0 * 2.0**FRACTION_BITS  # values are doubled, the matrix is fixed point
        self._scale = (1.0 / (fixed * np.outer(self.steps, norm))).astype(np.float32)

    def split(self, image: Pixels, planes: Planes, clipped: NDArray[np.int64]) -> None:
        """Fill `planes` (N, channels, h, w) from `image`; count what clips.

        image: (H, W, 1), (H, W, 3) or, as `imaging.packed` gives it, (H, W, 4).
        """
        if image.shape[2] == 3:
            image = np.pad(image, ((0, 0), (0, 0), (0, 1)))
        pixels = image.view(self._phases.dtype)[:, :, 0]
        gather(pixels, self._columns, self.prep.layout == "block", self._phases, self._values)
        analyse(self._values, self._pairs, self._triples, *self._tiles, self._scale,
                planes.reshape(*planes.shape[:2], -1), clipped)  # fmt: skip

    def empty(self) -> Planes:
        """An array for `split` to fill."""
        return np.empty((self.prep.splits, *self.prep.plane_shape), dtype=np.int8)

    def coefficients(self, image: Pixels) -> Values:
        """The planes before quantisation, in grey levels: (N, channels, h, w)."""
        phases = _phases(image, self.prep.p, self.prep.layout)
        rotated = self._colour32 @ phases.reshape(*phases.shape[:2], -1).astype(np.float32)
        flat = self._matrix32 @ rotated.reshape(self.prep.splits, -1)
        return flat.reshape(phases.shape)

    def dequantise(self, planes: Planes) -> Values:
        """Grey levels of quantised planes: step·q + offset, (N, channels, h, w)."""
        values = planes.astype(np.float32)
        values *= self.steps.astype(np.float32)[:, None, None, None]
        values += self.offsets.astype(np.float32)[:, :, None, None]
        return values

    def rebuild(self, planes: Planes) -> Pixels:
        """The image (H, W, channels) uint8 that `planes` (N, channels, h, w) hold."""
        values = self.dequantise(planes).reshape(self.prep.splits, -1)
        rotated = (self._matrix32.T @ values).reshape(*planes.shape[:2], -1)
        phases = (self._colour32.T @ rotated).reshape(planes.shape)
        pixels = np.rint(phases, out=phases).clip(0, 255, out=phases).astype(np.uint8)
        return _merge(pixels, self.prep.p, self.prep.layout)


def fixed_weights(
    matrix: NDArray[np.float64], pairs: NDArray[np.int64], triples: NDArray[np.int64]
) -> NDArray[np.int32]:
    """`matrix` in fixed point, (N, N + T), for values that `butterflies` and `add_radix3` have
    made: most weights are 0.
    """
    folded = matrix.copy()
    for a, b in pairs:
        one, other = folded[:, a].copy(), folded[:, b].copy()
        folded[:, a], folded[:, b] = (one + other) / 2, (one - other) / 2
    fixed = np.rint(folded * 2.0**FRACTION_BITS).astype(np.int32)
    fixed = np.hstack([fixed, np.zeros((len(fixed), len(triples)), np.int32)])
    for i, (a, b, c, sign) in enumerate(triples):
        alike = (fixed[:, b] == sign * fixed[:, a]) & (fixed[:, c] == sign * fixed[:, a])
        fixed[alike, len(matrix) + i] = fixed[alike, a]
        fixed[np.ix_(alike, [a, b, c])] = 0
    return fixed


def tiles(
    matrix: NDArray[np.float64], pairs: NDArray[np.int64], triples: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int16], NDArray[np.int64], NDArray[np.int64]]:
    """What `analyse` takes: TILE planes at a time that weigh the same rows, or nearly.

    order: (N,), planes. weights: (tiles, TILE, 2M), rows: (tiles, 2, M), lengths: (tiles,). A row
    whose weight an int16 does not hold stands there more than once, with parts of it.
    """
    fixed = fixed_weights(matrix, pairs, triples)
    order = np.lexsort((fixed != 0).T)
    found = [_parts(fixed[order[i : i + TILE]]) for i in range(0, len(order), TILE)]
    lengths = np.array([len(used) // 2 for used, _ in found])
    weights = np.zeros((len(found), TILE, 2 * lengths.max()), np.int16)
    rows = np.zeros((len(found), 2, lengths.max()), np.int64)
    for i, (used, parts) in enumerate(found):
        rows[i, :, : lengths[i]] = used.reshape(-1, 2).T
        weights[i, : len(parts), : len(used)] = parts
    return order, weights, rows, lengths


def _parts(fixed: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rows with a weight that is not 0, and their weights, in parts of at most 2¹⁵−1; even."""
    most = np.iinfo(np.int16).max
    rows, parts = np.zeros(0, np.int64), np.zeros((len(fixed), 0), np.int32)
    while (used := np.flatnonzero(fixed.any(axis=0))).size:
        part = fixed.clip(-most, most)
        rows, parts = np.concatenate([rows, used]), np.hstack([parts, part[:, used]])
        fixed = fixed - part
    odd = len(rows) % 2
    return np.pad(rows, (0, odd)), np.pad(parts, ((0, 0), (0, odd)))


def _phases(image: Pixels, p: int, layout: str) -> Pixels:
    """(p², channels, h, w) from (H, W, channels)."""
    size, _, channels = image.shape
    h = size // p
    if layout == "phase":
        cut = image.reshape(h, p, h, p, channels).transpose(1, 3, 4, 0, 2)
    else:
        cut = image.reshape(p, h, p, h, channels).transpose(0, 2, 4, 1, 3)
    return cut.reshape(p * p, channels, h, h)


def _merge(phases: Pixels, p: int, layout: str) -> Pixels:
    """The inverse of `_phases`."""
    _, channels, h, w = phases.shape
    cut = phases.reshape(p, p, channels, h, w)
    order = (3, 0, 4, 1, 2) if layout == "phase" else (0, 3, 1, 4, 2)
    return cut.transpose(order).reshape(h * p, w * p, channels)
