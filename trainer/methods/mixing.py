"""Mixing of images and labels within a batch: mixup, CutMix, RICAP.

Ours and not torchvision's, which draws from a global state: what is drawn for a step is an object
here, and acts on a batch. An image is mixed with others of its own group of four neighbours; the
order of samples is random already, and so several processes mix the same pairs as one would.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trainer.process.world import GROUP
from trainer.recipes.recipe import Augment

Targets = list[tuple[Tensor, float]]  # labels (B,) and their weight; weights add up to 1
Partner = Callable[[int], Tensor]  # index (B,) of each image's partner, so many places on


def partners(batch: int, turn: int, device: torch.device | None = None) -> Tensor:
    """Index of each image's partner, (B,): the one `turn` places on within its group."""
    index = torch.arange(batch, device=device)
    start = index // GROUP * GROUP
    size = (batch - start).clamp(max=GROUP)
    return start + (index - start + turn) % size


@dataclass(frozen=True)
class Mixup:
    """λ·x + (1 − λ)·x', λ ~ Beta(α, α), one a batch (Zhang et al., "mixup")."""

    weight: float

    @classmethod
    def draw(cls, alpha: float, rng: np.random.Generator) -> "Mixup":
        """For one step."""
        return cls(float(rng.beta(alpha, alpha)))

    def __call__(self, inputs: Tensor, labels: Tensor, partner: Partner) -> tuple[Tensor, Targets]:
        """inputs: (B, C, h, w), labels: (B,)."""
        other, weight = partner(1), self.weight
        mixed = torch.lerp(inputs[other], inputs, weight)
        return mixed, [(labels, weight), (labels[other], 1 - weight)]


@dataclass(frozen=True)
class Cutmix:
    """A box of area 1 − λ from a partner, λ ~ Beta(α, α), one a batch (Yun et al., "CutMix").

    λ is that of the box as it is after clipping at the border. In pixels.
    """

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def draw(cls, alpha: float, size: tuple[int, int], rng: np.random.Generator) -> "Cutmix":
        """For one step, of images of (height, width)."""
        half = np.sqrt(1 - rng.beta(alpha, alpha)) / 2
        centre = rng.random(2) * size
        reach = half * np.array(size)
        top, left = np.maximum(centre - reach, 0).astype(int).tolist()
        bottom, right = np.minimum(centre + reach, size).astype(int).tolist()
        return cls(top, bottom, left, right)

    def __call__(self, inputs: Tensor, labels: Tensor, partner: Partner) -> tuple[Tensor, Targets]:
        """inputs: (B, C, h, w), labels: (B,)."""
        other, mixed = partner(1), inputs.clone()
        box = (..., slice(self.top, self.bottom), slice(self.left, self.right))
        mixed[box] = inputs[box][other]
        height, width = inputs.shape[2:]
        share = (self.bottom - self.top) * (self.right - self.left) / (height * width)
        return mixed, [(labels, 1 - share), (labels[other], share)]


@dataclass(frozen=True)
class Ricap:
    """Four patches that meet at a point drawn from Beta(β, β) in each direction, each cropped
    at random from another image (Takahashi et al., "RICAP"); weights are their areas.

    patches: (top, left, height, width) in the mixed image and (top, left) in its own, in pixels.
    """

    patches: tuple[tuple[int, int, int, int, int, int], ...]

    @classmethod
    def draw(cls, beta: float, size: tuple[int, int], rng: np.random.Generator) -> "Ricap":
        """For one step, of images of (height, width)."""
        height, width = size
        down, right = round(height * rng.beta(beta, beta)), round(width * rng.beta(beta, beta))
        rows, columns = ((0, down), (down, height - down)), ((0, right), (right, width - right))
        patches = []
        for top, h in rows:
            for left, w in columns:
                y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                patches.append((top, left, h, w, int(y), int(x)))
        return cls(tuple(patches))

    def __call__(self, inputs: Tensor, labels: Tensor, partner: Partner) -> tuple[Tensor, Targets]:
        """inputs: (B, C, h, w), labels: (B,)."""
        height, width = inputs.shape[2:]
        mixed, targets = torch.empty_like(inputs), []
        for turn, (top, left, h, w, y, x) in enumerate(self.patches):
            other = partner(turn)
            patch = inputs[:, :, y : y + h, x : x + w]
            mixed[:, :, top : top + h, left : left + w] = patch[other]
            targets.append((labels[other], h * w / (height * width)))
        return mixed, targets


Mix = Mixup | Cutmix | Ricap


def draw_mixes(
    augment: Augment, size: tuple[int, int], steps: int, rng: np.random.Generator
) -> list[Mix | None]:
    """How the batch of each step is mixed; of mixup and CutMix together one of them, as often."""
    kinds: list[Callable[[], Mix]] = []
    if augment.mixup:
        kinds.append(partial(Mixup.draw, augment.mixup, rng))
    if augment.cutmix:
        kinds.append(partial(Cutmix.draw, augment.cutmix, size, rng))
    if augment.ricap:
        kinds.append(partial(Ricap.draw, augment.ricap, size, rng))
    if not kinds:
        return [None] * steps
    return [kinds[int(rng.integers(len(kinds)))]() for _ in range(steps)]
