"""A recipe and a network in; torch's or timm's optimiser out. Its rate is set at every step."""

from typing import Any

import torch
from torch import nn

from trainer.recipes.recipe import Optimizer


def build(network: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Over all parameters, in groups where weight decay is not for all of them."""
    return _BUILDERS[optimizer.name](groups(network, optimizer), optimizer)


def groups(network: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """One group; or those that decay, matrices and kernels, and those that do not: biases, and
    scales and shifts of normalisation.
    """
    if optimizer.decay_all:
        parameters = list(network.parameters())
        return [{"params": parameters, "weight_decay": optimizer.weight_decay}]
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": optimizer.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _sgd(parameters: list[dict[str, Any]], optimizer: Optimizer) -> torch.optim.Optimizer:
    sgd = torch.optim.SGD(
        parameters,
        lr=optimizer.lr,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        fused=True,
    )
    if optimizer.momentum:  # a first step that is skipped would leave them uninitialised
        for weight in (p for group in sgd.param_groups for p in group["params"]):
            sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return sgd


def _adam(parameters: list[dict[str, Any]], optimizer: Optimizer) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if optimizer.name == "adamw" else torch.optim.Adam
    betas = (optimizer.beta1, optimizer.beta2)
    return kind(parameters, lr=optimizer.lr, betas=betas, amsgrad=optimizer.amsgrad, fused=True)


def _lars(parameters: list[dict[str, Any]], optimizer: Optimizer) -> torch.optim.Optimizer:
    """With the local rate ‖w‖ / (‖g‖ + decay·‖w‖), without a trust coefficient, for all weights."""
    from timm.optim import Lars  # type: ignore[attr-defined]

    return Lars(
        parameters,
        lr=optimizer.lr,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        trust_coeff=1.0,
        always_adapt=True,
    )


def _lamb(parameters: list[dict[str, Any]], optimizer: Optimizer) -> torch.optim.Optimizer:
    from timm.optim import Lamb  # type: ignore[attr-defined]

    return Lamb(parameters, lr=optimizer.lr, betas=(optimizer.beta1, optimizer.beta2))


_BUILDERS = {"sgd": _sgd, "adam": _adam, "adamw": _adam, "lars": _lars, "lamb": _lamb}
