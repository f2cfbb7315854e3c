"""Everything random about augmentation, drawn for a block of steps at once.

NumPy draws on the host, and one copy a block brings it to the device: the same on a CPU and a GPU,
without a generator to be set up, or a copy to be waited for, in each step. What is drawn depends on
(seed, epoch, step) alone, and on the whole batch even where several processes share it.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.methods import mixing
from trainer.methods.policy import Operations, draw_operations
from trainer.process.seeds import AUGMENTATION
from trainer.recipes.recipe import Augment

_T = TypeVar("_T", bound=np.generic)
BLOCK = 32  # steps
FLIPS = 3  # horizontal, vertical, by 180 degrees
_AREAS, _RATIOS, _TRIES = (0.02, 0.4), (0.3, 1 / 0.3), 10  # Zhong et al., "Random Erasing"


@dataclass(frozen=True)
class Draws:
    """Of a block of S steps, for each image of a share: flips (S, B, 3) bool, shifts (S, B, 2) =
    (down, right) px, boxes (S, B, n, 4) px = (top, bottom, left, right), operations of a policy;
    and for each step how the batch is mixed.
    """

    flips: NDArray[np.bool_]
    shifts: NDArray[np.int16]
    boxes: NDArray[np.int16]
    operations: Operations | None
    mixes: list[mixing.Mix | None]


def draw_block(
    augment: Augment,
    size: tuple[int, int],
    key: tuple[int, int, int],
    batch: int,
    share: slice,
) -> Draws:
    """The draws of block `key` = (seed, epoch, number of the block), of planes of (height, width)
    in batches of `batch`, of which `share` is wanted.
    """
    rng = np.random.default_rng([*key, AUGMENTATION])
    images = BLOCK * batch

    def shared(values: NDArray[_T]) -> NDArray[_T]:
        return np.ascontiguousarray(values.reshape(BLOCK, batch, *values.shape[1:])[:, share])

    flips = rng.random((images, FLIPS), np.float32) < 0.5
    shifts = rng.integers(-augment.shift, augment.shift + 1, (images, 2), np.int16)
    boxes = [np.zeros((images, 0, 4), np.int16)]
    for _ in range(bool(augment.cutout) + bool(augment.dual_cutout)):
        boxes.append(_squares(augment.cutout, size, images, rng))
    if augment.erasing:
        boxes.append(_rectangles(augment.erasing, size, images, rng))
    operations = draw_operations(augment, size, (BLOCK, batch), rng)
    return Draws(
        shared(flips),
        shared(shifts),
        shared(np.concatenate(boxes, axis=1)),
        None if operations is None else operations.part(share),
        mixing.draw_mixes(augment, size, BLOCK, rng),
    )


def _squares(
    side: int, size: tuple[int, int], images: int, rng: np.random.Generator
) -> NDArray[np.int16]:
    """With their centre anywhere on the plane (DeVries & Taylor), (images, 1, 4)."""
    start = rng.integers(0, size, (images, 2), np.int16) - side // 2
    return np.stack([start, start + side], axis=2).reshape(images, 1, 4).astype(np.int16)


def _rectangles(
    share: float, size: tuple[int, int], images: int, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Within the plane, as torchvision's RandomErasing draws them, for a share of the images,
    (images, 1, 4); no area for the others.
    """
    height, width = size
    sides = np.zeros((images, 2), np.int64)
    missing = np.flatnonzero(rng.random(images) < share)
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*_AREAS, len(missing))
        ratio = np.exp(rng.uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1]), len(missing)))
        found = np.rint(np.sqrt([area * ratio, area / ratio])).astype(np.int64).T
        fits = (found < size).all(axis=1)
        sides[missing[fits]] = found[fits]
        missing = missing[~fits]
    start = (rng.random((images, 2)) * (np.array(size) - sides + 1)).astype(np.int64)
    return np.stack([start, start + sides], axis=2).reshape(images, 1, 4).astype(np.int16)
