"""Batches of one plane in, augmented batches out, on their device.

Acts on the centred integers, before normalisation, since a flip of the image is a flip
of the plane times ±1 there, and 0 is mid grey. Draws depend on (seed, epoch, step)
alone. What is exact on a plane: `pipeline.transforms.flip_sign`. A shift of a plane by
one pixel is a shift of the image by p pixels; a smaller one does not exist on a plane.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.options import Preparation
from pipeline.transforms import flip_sign
from trainer.recipe import Augment


class Augmenter:
    """The augmentations of a recipe, for plane `k` of a preparation."""

    def __init__(self, augment: Augment, prep: Preparation, k: int, seed: int) -> None:
        self.shift, self.seed = augment.shift, seed
        sign = flip_sign(prep.p, prep.transform, k, "horizontal") if prep.splits > 1 else 1
        self.flip_sign = sign if augment.horizontal_flip else 0

    def __call__(self, values: Tensor, epoch: int, step: int) -> Tensor:
        """values: (B, C, h, w) float."""
        rng = np.random.default_rng([self.seed, epoch, step])
        if self.flip_sign:
            chosen = torch.from_numpy(rng.random(len(values)) < 0.5).to(values.device)
            values = flip(values, chosen, self.flip_sign)
        if self.shift:
            offsets = rng.integers(-self.shift, self.shift + 1, (len(values), 2))
            values = translate(values, torch.from_numpy(offsets).to(values.device))
        return values


def flip(values: Tensor, chosen: Tensor, sign: int) -> Tensor:
    """Mirror left and right, times `sign`, where chosen (B,) bool. values: (B, C, h, w)."""
    return torch.where(chosen[:, None, None, None], sign * values.flip(3), values)


def translate(values: Tensor, offsets: Tensor) -> Tensor:
    """Move each image by offsets (B, 2) = (down, right) px; the border fills with 0."""
    batch, _, height, width = values.shape
    reach = int(offsets.abs().max())
    padded = F.pad(values, (reach, reach, reach, reach))
    device = values.device
    rows = torch.arange(height, device=device) + reach - offsets[:, :1]
    columns = torch.arange(width, device=device) + reach - offsets[:, 1:]
    images = torch.arange(batch, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )
