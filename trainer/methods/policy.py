"""Whole images in, each changed as torchvision's RandAugment or TrivialAugment would, out.

Colours, rotations and shears of an image are not those of a plane: for whole images only.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from trainer.recipes.recipe import Augment

_GREY = 128  # of what lies outside of the image


Policy = Callable[[Tensor], Tensor]


def make_policy(augment: Augment) -> Policy | None:
    """(C, h, w) uint8 → the same shape, drawing from torch's own state; None for no policy."""
    if augment.policy == "randaugment":
        operations, magnitude = augment.policy_operations, augment.policy_magnitude
        return cast(Policy, v2.RandAugment(operations, magnitude, fill=_GREY))
    if augment.policy == "trivialaugment":
        return cast(Policy, v2.TrivialAugmentWide(fill=_GREY))
    return None


def apply(policy: Policy, values: Tensor, seeds: NDArray[np.int64]) -> Tensor:
    """values: (B, C, h, w) float, grey levels less 128; seeds: (B,), of each image its own.

    The policies take one image at a time and draw from torch's state, which is left as it was.
    """
    images = (values + 128).to(torch.uint8)
    generator = torch.default_generator
    before = generator.get_state()
    changed = []
    for image, seed in zip(images, seeds.tolist(), strict=True):
        generator.manual_seed(seed)
        changed.append(policy(image))
    generator.set_state(before)
    return torch.stack(changed).to(values.dtype) - 128
