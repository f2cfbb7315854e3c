"""Augments and normalises batches of one plane, on the device.

What is exact on a plane (`pipeline.transforms.flip_sign`): a flip of the image is a flip of
the plane times ±1 for every plane of `dct2`; of `dct` only for k divisible by p, while a
rotation by 180° is exact for all of its planes. A flip that is not exact on the plane at hand
is left out. A shift of a plane by one pixel is a shift of the image by p pixels; a smaller one
does not exist on a plane. Erasing and mixing act on any plane as they do on an image; a policy
(RandAugment, TrivialAugment) is for whole images alone.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.preparation import Preparation
from pipeline.transforms import flip_sign
from trainer.methods.draws import BLOCK, Draws, draw_block
from trainer.methods.mixing import Targets, partners
from trainer.methods.policy import Policy
from trainer.process.device import sent
from trainer.recipes.recipe import Augment

# Dimensions of (B, C, h, w) that each one mirrors, with its name in transforms and in recipes
_FLIPS = {"horizontal": (3,), "vertical": (2,), "rotate180": (2, 3)}
_NAMES = {
    "horizontal": "horizontal_flip",
    "vertical": "vertical_flip",
    "rotate180": "rotate180",
}


class Augmenter:
    """The augmentations of a recipe, for plane `k` of a preparation, or for a group of planes, all
    of which are moved alike: a flip has to be exact on each of them.

    `share`: the part of each batch of `batch_size` that this process sees. `mirrored`: which images
    of a block of steps are, (BLOCK, share) bool by epoch and block, where that is not drawn.
    """

    def __init__(
        self,
        augment: Augment,
        prep: Preparation,
        k: int | tuple[int, ...],
        seed: int,
        normalise: Callable[[Tensor], Tensor],
        batch_size: int,
        share: slice,
        mirrored: Callable[[int, int], NDArray[np.bool_]] | None = None,
    ) -> None:
        self.augment, self.seed, self._normalise = augment, seed, normalise
        self._mirrored = mirrored
        self.batch_size, self._share = batch_size, share
        self.size = prep.input_shape[1:]
        self.signs = {
            flip: channel_signs(prep, k, flip) for flip in _FLIPS if getattr(augment, _NAMES[flip])
        }
        self._block: _Block | None = None
        self._partners: dict[tuple[int, int], Tensor] = {}

    def __call__(
        self, values: Tensor, labels: Tensor, epoch: int, step: int
    ) -> tuple[Tensor, Targets]:
        """values: (B, C, h, w) int8, of a group (B, g, C, h, w), which is (B, g·C, h, w) from here
        on; labels: (B,) → (B, C, h, w) float, or (B, 2, C, h, w) with Dual-Cutout, and the targets.
        """
        if values.dim() == 5:
            values = values.flatten(1, 2)
        block, at = self._block_of(epoch, step, values.device), step % BLOCK
        moved = self._moved(values, block, at)
        if block.policy is not None:
            grey_levels = moved.contiguous().view(torch.uint8) ^ 128
            moved = (block.policy.apply(grey_levels, at) ^ 128).view(torch.int8)
        inputs = self._normalise(moved)
        if self.augment.dual_cutout:  # the first square is one view's, the second the other's
            views = [block.erased(inputs, at, leave_out=view) for view in (1, 0)]
            return torch.stack(views, dim=1), [(labels, 1.0)]
        inputs = block.erased(inputs, at)
        mix = block.mixes[at]
        if mix is None:
            return inputs, [(labels, 1.0)]
        return mix(inputs, labels, lambda turn: self._partner(len(labels), turn, labels.device))

    def draws(self, epoch: int, step: int) -> Draws:
        """Of the block that a step lies in."""
        key = (self.seed, epoch, step // BLOCK)
        found = draw_block(self.augment, self.size, key, self.batch_size, self._share)
        if self._mirrored is not None:
            found.flips[:, :, 0] = self._mirrored(epoch, step // BLOCK)
        return found

    def _block_of(self, epoch: int, step: int, device: torch.device) -> "_Block":
        key = (epoch, step // BLOCK)
        if self._block is None or self._block.key != key:
            self._block = _Block(key, self.draws(epoch, step), self.size, self.signs, device)
        return self._block

    def _moved(self, values: Tensor, block: "_Block", at: int) -> Tensor:
        """Flips and shifts: of the centred integers, where a flip is ±1 and 0 is mid grey."""
        for column, (flip, dims) in enumerate(_FLIPS.items()):
            if all(self.signs.get(flip, (0,))):
                signs = block.signs[flip]
                values = mirror(values, block.flips[at, :, column], dims, signs)
        if self.augment.shift:
            border = self.augment.shift_border
            values = translate(values, block.shifts[at], self.augment.shift, border)
        return values

    def _partner(self, batch: int, turn: int, device: torch.device) -> Tensor:
        """Made once: copying it to the device would hold up each step."""
        if (batch, turn) not in self._partners:
            self._partners[batch, turn] = partners(batch, turn, device)
        return self._partners[batch, turn]


class _Block:
    """The draws of a block of steps on the device, made ready for each of them."""

    def __init__(
        self,
        key: tuple[int, int],
        draws: Draws,
        size: tuple[int, int],
        signs: dict[str, tuple[int, ...]],
        device: torch.device,
    ) -> None:
        self.key, self.mixes = key, draws.mixes
        self.signs = {
            flip: None if min(of) == 1 else sent(np.array(of, np.int8), device)[:, None, None]
            for flip, of in signs.items()
        }
        self.flips, self.shifts = sent(draws.flips, device), sent(draws.shifts, device).long()
        operations = draws.operations
        self.policy = None if operations is None else Policy(operations, device)
        self._boxes = draws.boxes.shape[2]
        if self._boxes:
            self._high, self._wide = sides(sent(draws.boxes, device), size)

    def erased(self, values: Tensor, at: int, leave_out: int | None = None) -> Tensor:
        """0 in the boxes of step `at`, of which one may be left out."""
        for box in range(self._boxes):
            if box != leave_out:
                values = erase(values, self._high[at, :, box], self._wide[at, :, box])
        return values


def channel_signs(prep: Preparation, k: int | tuple[int, ...], flip: str) -> tuple[int, ...]:
    """What each channel of the planes is multiplied by when the image is flipped; 0 where the
    flipped plane does not follow from the plane.
    """
    planes = (k,) if isinstance(k, int) else k
    each = [
        flip_sign(prep.p, prep.transform, plane, flip) if prep.splits > 1 else 1 for plane in planes
    ]
    return tuple(sign for sign in each for _ in range(prep.input_shape[0]))


def mirror(
    values: Tensor, chosen: Tensor, dims: tuple[int, ...], signs: Tensor | None = None
) -> Tensor:
    """Flip along `dims`, times `signs` (C, 1, 1) of the channels (None: all 1), where chosen (B,)
    bool. values: (B, C, h, w).
    """
    flipped = values.flip(dims)
    if signs is not None:
        flipped = flipped * signs
    return torch.where(chosen[:, None, None, None], flipped, values)


def translate(values: Tensor, offsets: Tensor, reach: int, border: str = "grey") -> Tensor:
    """Move each image by offsets (B, 2) = (down, right) px, of at most `reach` px; the border fills
    with 0, or with `reflect` as torch's reflection padding does.
    """
    height, width = values.shape[2:]
    device = values.device
    rows = torch.arange(height, device=device) - offsets[:, :1]
    columns = torch.arange(width, device=device) - offsets[:, 1:]
    if border == "reflect":
        rows, columns = reflected(rows, height), reflected(columns, width)
        channels_last = values.permute(0, 2, 3, 1)
    else:
        rows, columns = rows + reach, columns + reach
        channels_last = F.pad(values, (reach, reach, reach, reach)).permute(0, 2, 3, 1)
    images = torch.arange(len(values), device=device)[:, None, None]
    return channels_last[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def reflected(places: Tensor, side: int) -> Tensor:
    """Places within −side < i < 2·side − 1 of a line of `side` pixels, mirrored at the middles of
    its first and last one into 0 ≤ i < side.
    """
    return side - 1 - (side - 1 - places.abs()).abs()


def erase(values: Tensor, high: Tensor, wide: Tensor) -> Tensor:
    """Set to 0 what lies in rows high (B, h) and columns wide (B, w) bool. values: (B, C, h, w)."""
    return values.masked_fill((high[:, :, None] & wide[:, None, :])[:, None], 0)


def sides(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows (…, n, h) and columns (…, n, w) that lie within boxes (…, n, 4) = (top, bottom, left,
    right).
    """
    top, bottom, left, right = (edge[..., None] for edge in boxes.unbind(dim=-1))
    rows, columns = (torch.arange(side, device=boxes.device) for side in size)
    return (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
