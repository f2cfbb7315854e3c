"""Batches of one plane in, augmented and normalised batches and their targets out, on the device.

Everything drawn depends on (seed, epoch, step) alone, and is drawn for the whole batch of a
step even where several processes share it, so that their number changes nothing.

What is exact on a plane (`pipeline.transforms.flip_sign`): a flip of the image is a flip of
the plane times ±1 for every plane of `dct2`; of `dct` only for k divisible by p, while a
rotation by 180° is exact for all of its planes. A flip that is not exact on the plane at hand
is left out. A shift of a plane by one pixel is a shift of the image by p pixels; a smaller one
does not exist on a plane. Erasing and mixing act on any plane as they do on an image; a policy
(RandAugment, TrivialAugment) is for whole images alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.preparation import Preparation
from pipeline.transforms import flip_sign
from trainer.methods import mixing, policy
from trainer.methods.mixing import Targets
from trainer.recipes.recipe import Augment

# Dimensions of (B, C, h, w) that each one mirrors, with its name in transforms and in recipes
_FLIPS = {"horizontal": (3,), "vertical": (2,), "rotate180": (2, 3)}
_NAMES = {
    "horizontal": "horizontal_flip",
    "vertical": "vertical_flip",
    "rotate180": "rotate180",
}
_AREAS, _RATIOS, _TRIES = (0.02, 0.4), (0.3, 1 / 0.3), 10  # Zhong et al., "Random Erasing"
_DRAWS = 1  # sets these streams apart from those that order the samples


@dataclass(frozen=True)
class Draws:
    """For each image of a share: flips (B, 3) bool, shifts (B, 2) px, boxes (B, n, 4) px =
    (top, bottom, left, right), a policy's seeds (B,); numpy on the CPU. `rng` goes on to what the
    whole batch shares.
    """

    flips: NDArray[np.bool_]
    shifts: NDArray[np.int64]
    boxes: NDArray[np.int64]
    seeds: NDArray[np.int64]
    rng: np.random.Generator


class Augmenter:
    """The augmentations of a recipe, for plane `k` of a preparation.

    `share`: the part of each batch of `batch_size` that this process sees.
    """

    def __init__(
        self,
        augment: Augment,
        prep: Preparation,
        k: int,
        seed: int,
        normalise: Callable[[Tensor], Tensor],
        batch_size: int,
        share: slice,
    ) -> None:
        self.augment, self.seed, self._normalise = augment, seed, normalise
        self.batch_size, self._share = batch_size, share
        self.size = prep.input_shape[1:]
        self._policy = policy.make_policy(augment)
        self.signs = {
            flip: flip_sign(prep.p, prep.transform, k, flip) if prep.splits > 1 else 1
            for flip in _FLIPS
            if getattr(augment, _NAMES[flip])
        }

    def __call__(
        self, values: Tensor, labels: Tensor, epoch: int, step: int
    ) -> tuple[Tensor, Targets]:
        """values: (B, C, h, w) int8, labels: (B,) → (B, C, h, w) float, or (B, 2, C, h, w) with
        Dual-Cutout, and the targets.
        """
        draws = self.draw(epoch, step)
        inputs = self._moved(values.float(), draws)
        if self._policy is not None:
            inputs = policy.apply(self._policy, inputs, draws.seeds)
        inputs = self._normalise(inputs)
        if draws.boxes.size:
            boxes = torch.from_numpy(draws.boxes).to(inputs.device)
            if self.augment.dual_cutout:  # the first square is one view's, the second the other's
                both = range(2, boxes.shape[1])
                views = [erase(inputs, boxes[:, [view, *both]]) for view in (0, 1)]
                return torch.stack(views, dim=1), [(labels, 1.0)]
            inputs = erase(inputs, boxes)
        return self._mixed(inputs, labels, draws.rng)

    def draw(self, epoch: int, step: int) -> Draws:
        """All draws of one step."""
        rng = np.random.default_rng([self.seed, epoch, step, _DRAWS])
        batch, share = self.batch_size, self._share
        flips = rng.random((batch, len(_FLIPS))) < 0.5
        reach = self.augment.shift
        shifts = rng.integers(-reach, reach + 1, (batch, 2))
        boxes = np.zeros((batch, 0, 4), np.int64)
        for _ in range(bool(self.augment.cutout) + bool(self.augment.dual_cutout)):
            boxes = np.concatenate([boxes, self._cutouts(rng)], axis=1)
        if self.augment.erasing:
            boxes = np.concatenate([boxes, self._erasings(rng)], axis=1)
        seeds = rng.integers(0, 2**63, batch if self._policy is not None else 0)
        return Draws(flips[share], shifts[share], boxes[share], seeds[share], rng)

    def _cutouts(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Squares with their centre anywhere on the plane (DeVries & Taylor), (B, 1, 4)."""
        side = self.augment.cutout
        start = rng.integers(0, self.size, (self.batch_size, 2)) - side // 2
        return np.stack([start, start + side], axis=2).reshape(self.batch_size, 1, 4)

    def _erasings(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Rectangles within the plane, as torchvision's RandomErasing draws them, (B, 1, 4)."""
        height, width = self.size
        tries = (self.batch_size, _TRIES)
        area = height * width * rng.uniform(*_AREAS, tries)
        ratio = np.exp(rng.uniform(np.log(_RATIOS[0]), np.log(_RATIOS[1]), tries))
        sides = np.rint([np.sqrt(area * ratio), np.sqrt(area / ratio)]).astype(np.int64)
        fits = (sides[0] < height) & (sides[1] < width)
        sides = sides[:, np.arange(self.batch_size), fits.argmax(axis=1)].T
        start = (rng.random((self.batch_size, 2)) * (np.array(self.size) - sides + 1)).astype(int)
        boxes = np.stack([start, start + sides], axis=2)
        chosen = fits.any(axis=1) & (rng.random(self.batch_size) < self.augment.erasing)
        return np.where(chosen[:, None, None], boxes, 0).reshape(self.batch_size, 1, 4)

    def _moved(self, values: Tensor, draws: Draws) -> Tensor:
        """Flips and shifts: of the centred integers, where a flip is ±1 and 0 is mid grey."""
        if any(self.signs.values()):
            chosen = torch.from_numpy(draws.flips).to(values.device)
            for column, (flip, dims) in enumerate(_FLIPS.items()):
                if sign := self.signs.get(flip, 0):
                    values = mirror(values, chosen[:, column], dims, sign)
        if self.augment.shift:
            values = translate(values, draws.shifts)
        return values

    def _mixed(
        self, inputs: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Targets]:
        mixup, cutmix = self.augment.mixup, self.augment.cutmix
        if mixup and cutmix:  # one of them, as often
            mixup, cutmix = (mixup, 0.0) if rng.random() < 0.5 else (0.0, cutmix)
        if mixup:
            return mixing.mixup(inputs, labels, mixup, rng)
        if cutmix:
            return mixing.cutmix(inputs, labels, cutmix, rng)
        if self.augment.ricap:
            return mixing.ricap(inputs, labels, self.augment.ricap, rng)
        return inputs, [(labels, 1.0)]


def mirror(values: Tensor, chosen: Tensor, dims: tuple[int, ...], sign: int) -> Tensor:
    """Flip along `dims`, times `sign`, where chosen (B,) bool. values: (B, C, h, w)."""
    return torch.where(chosen[:, None, None, None], sign * values.flip(dims), values)


def translate(values: Tensor, offsets: NDArray[np.int64]) -> Tensor:
    """Move each image by offsets (B, 2) = (down, right) px; the border fills with 0."""
    batch, _, height, width = values.shape
    reach = int(np.abs(offsets).max(initial=0))
    padded = F.pad(values, (reach, reach, reach, reach))
    device = values.device
    moved = torch.from_numpy(reach - offsets).to(device)
    rows = torch.arange(height, device=device) + moved[:, :1]
    columns = torch.arange(width, device=device) + moved[:, 1:]
    images = torch.arange(batch, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def erase(values: Tensor, boxes: Tensor) -> Tensor:
    """Set to 0 what lies in boxes (B, n, 4) = (top, bottom, left, right). values: (B, C, h, w)."""
    top, bottom, left, right = (edge[..., None] for edge in boxes.unbind(dim=2))
    rows = torch.arange(values.shape[2], device=values.device)
    columns = torch.arange(values.shape[3], device=values.device)
    high, wide = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    hit = (high[..., :, None] & wide[..., None, :]).any(dim=1, keepdim=True)
    return values.masked_fill(hit, 0)
