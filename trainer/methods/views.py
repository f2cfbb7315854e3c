"""Shows an image to a network in several ways, whose answers are averaged."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.preparation import Preparation
from trainer.methods.augment import channel_signs, reflected
from trainer.recipes.recipe import Recipe

_MOVED = 0.5  # the weight of both moved images together, as Jordan 2024 has it


class Views(nn.Module):
    """The image itself; its mirror image, where that is exact on all planes (`test_flip`); and both
    of them moved up and left, and down and right, by `test_shift` px, the border mirrored.
    """

    signs: Tensor

    def __init__(self, recipe: Recipe, prep: Preparation, planes: tuple[int, ...]) -> None:
        super().__init__()
        signs = channel_signs(prep, planes, "horizontal") if recipe.test_flip else (0,)
        self.flips = all(signs)
        found = torch.from_numpy(np.array(signs, np.int8))[:, None, None]
        self.register_buffer("signs", found, persistent=False)
        self._shift = recipe.test_shift

    def forward(self, values: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Views of (B, C, h, w) int8 with their weights, which add up to 1."""
        moved = _MOVED if self._shift else 0.0
        places = [(0, 1 - moved)] + [(by, moved / 2) for by in (-self._shift, self._shift) if by]
        for by, weight in places:
            seen = self._moved(values, by)
            if not self.flips:
                yield seen, weight
                continue
            yield seen, weight / 2
            yield seen.flip(3) * self.signs, weight / 2

    def _moved(self, values: Tensor, by: int) -> Tensor:
        """(B, C, h, w) moved down and right by so many pixels."""
        if not by:
            return values
        height, width = values.shape[2:]
        rows = reflected(torch.arange(height, device=values.device) - by, height)
        columns = reflected(torch.arange(width, device=values.device) - by, width)
        return values.index_select(2, rows).index_select(3, columns)
