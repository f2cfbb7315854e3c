"""The loss of a batch, of plain, mixed and smoothed labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.methods.mixing import Targets
from trainer.recipes.recipe import Recipe


def batch_loss(logits: Tensor, targets: Targets, recipe: Recipe) -> Tensor:
    """Sum over the images of their losses. logits: (B, classes), or (B, 2, classes) of two views,
    whose losses are averaged and whose difference counts (Dual-Cutout).
    """
    if logits.ndim == 2:
        return _mixed(logits, targets, recipe)
    views = [_mixed(view, targets, recipe) for view in logits.unbind(dim=1)]
    difference = (logits[:, 0] - logits[:, 1]).square().mean(dim=1).sum()
    return torch.stack(views).mean() + recipe.augment.dual_cutout * difference


def _mixed(logits: Tensor, targets: Targets, recipe: Recipe) -> Tensor:
    if recipe.loss == "bce":
        aims = soft(targets, logits.shape[1], recipe.label_smoothing)
        each = F.binary_cross_entropy_with_logits(logits, aims, reduction="none")
        return each.mean(dim=1).sum()
    smoothing = recipe.label_smoothing
    parts = [
        weight * F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        for labels, weight in targets
    ]
    return torch.stack(parts).sum()


def soft(targets: Targets, classes: int, smoothing: float) -> Tensor:
    """(B, classes): what the labels of each image add up to."""
    parts = [weight * F.one_hot(labels, classes).float() for labels, weight in targets]
    return torch.stack(parts).sum(dim=0) * (1 - smoothing) + smoothing / classes
