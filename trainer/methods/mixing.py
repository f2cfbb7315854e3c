"""Batches of images and labels in, batches of mixed ones and what to aim at out.

Ours and not torchvision's, which draws from a global state: here all is drawn from the
generator at hand. An image is mixed with others of its own group of four neighbours; the order
of samples is random already, and so several processes mix the same pairs as one would.
"""

import numpy as np
import torch
from torch import Tensor

Targets = list[tuple[Tensor, float]]  # labels (B,) and their weight; weights add up to 1
_GROUP = 4


def partners(batch: int, turn: int) -> Tensor:
    """Index of each image's partner, (B,): the one `turn` places on within its group."""
    index = torch.arange(batch)
    start = index // _GROUP * _GROUP
    size = (batch - start).clamp(max=_GROUP)
    return start + (index - start + turn) % size


def mixup(
    inputs: Tensor, labels: Tensor, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Targets]:
    """λ·x + (1 − λ)·x', λ ~ Beta(α, α), one a batch (Zhang et al., "mixup")."""
    weight = rng.beta(alpha, alpha)
    other = partners(len(labels), 1).to(labels.device)
    mixed = torch.lerp(inputs[other], inputs, weight)
    return mixed, [(labels, weight), (labels[other], 1 - weight)]


def cutmix(
    inputs: Tensor, labels: Tensor, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Targets]:
    """A box of area 1 − λ from a partner, λ ~ Beta(α, α), one a batch (Yun et al., "CutMix").

    λ is that of the box as it is after clipping at the border.
    """
    height, width = inputs.shape[2:]
    half = np.sqrt(1 - rng.beta(alpha, alpha)) / 2
    centre = rng.random(2) * (height, width)
    reach = half * np.array([height, width])
    top, left = np.maximum(centre - reach, 0).astype(int).tolist()
    bottom, right = np.minimum(centre + reach, (height, width)).astype(int).tolist()
    other = partners(len(labels), 1).to(labels.device)
    mixed = inputs.clone()
    mixed[:, :, top:bottom, left:right] = inputs[other, :, top:bottom, left:right]
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, [(labels, weight), (labels[other], 1 - weight)]


def ricap(
    inputs: Tensor, labels: Tensor, beta: float, rng: np.random.Generator
) -> tuple[Tensor, Targets]:
    """Four patches that meet at a point drawn from Beta(β, β) in each direction, each cropped
    at random from another image (Takahashi et al., "RICAP"); weights are their areas.
    """
    height, width = inputs.shape[2:]
    down, right = round(height * rng.beta(beta, beta)), round(width * rng.beta(beta, beta))
    mixed, targets = torch.empty_like(inputs), []
    patches = [
        (0, 0, down, right),
        (0, right, down, width - right),
        (down, 0, height - down, right),
        (down, right, height - down, width - right),
    ]
    for turn, (top, left, h, w) in enumerate(patches):
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        other = partners(len(labels), turn).to(labels.device)
        mixed[:, :, top : top + h, left : left + w] = inputs[other, :, y : y + h, x : x + w]
        targets.append((labels[other], h * w / (height * width)))
    return mixed, targets
