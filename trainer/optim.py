"""A recipe in; the optimiser, and the learning rate of every step, out."""

import math

import torch
from torch import nn

from trainer.recipe import Optimizer


def build(network: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Torch's SGD or AdamW over all parameters; the rate is set by `lr_at` at every step."""
    if optimizer.name == "adamw":
        return torch.optim.AdamW(
            network.parameters(),
            lr=optimizer.lr,
            betas=(optimizer.beta1, optimizer.beta2),
            weight_decay=optimizer.weight_decay,
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=optimizer.lr,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.weight_decay,
    )


def lr_at(step: int, *, steps: int, warmup: float, peak: float, final: float) -> float:
    """Learning rate of step 0 ≤ step < steps: linear to `peak` over `warmup` steps, then a
    cosine that reaches `final` at the last step (Loshchilov & Hutter, SGDR, one cycle).
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    span = max(steps - 1 - warmup, 1)
    progress = min((step - warmup) / span, 1.0)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
