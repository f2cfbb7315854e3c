"""Builds the optimiser of a recipe, torch's or timm's, and sets its rates at every step."""

import math
from typing import Any

import torch
from torch import nn

from trainer.recipes.recipe import Optimizer

# torch marks these as not to be compiled when they are first called, and imports its compiler for
# that, 4 s of CPU in every process; nothing here compiles them.
_Base = torch.optim.Optimizer
for _method in (_Base.state_dict, _Base.load_state_dict, _Base.zero_grad, _Base.add_param_group):
    _plain = getattr(_method, "__wrapped__", None)
    if _plain is not None:
        _plain.__dynamo_disable = _plain


def build(network: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Over all parameters, in groups where weight decay is not for all of them."""
    return _BUILDERS[optimizer.name](groups(network, optimizer), optimizer)


def groups(network: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Parameters that decay and learn alike. `lr_factor`: times the schedule's rate; `until`: the
    epoch after which they learn no more. Matrices and kernels are one kind; biases, and scales and
    shifts of normalisation, another.
    """
    found: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        stem = optimizer.stem_epochs and name.split(".")[0] == "stem"
        until = optimizer.stem_epochs if stem else math.inf
        vector = parameter.ndim <= 1
        factor = optimizer.bias_lr_factor if vector else 1.0
        decayed = optimizer.decay_all or not vector
        decay = optimizer.weight_decay / factor if decayed else 0.0
        found.setdefault((decay, factor, until), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor, "until": until}
        for (decay, factor, until), parameters in found.items()
    ]


def set_rates(optimizer: torch.optim.Optimizer, lr: float, epoch: float) -> None:
    """Of every group, for a step after `epoch` epochs, at which the schedule says `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"] if epoch < group["until"] else 0.0


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

    betas = (optimizer.beta1, optimizer.beta2)
    # clipping is the recipe's: Lamb's own default always clips to a norm of 1
    return Lamb(parameters, lr=optimizer.lr, betas=betas, max_grad_norm=None)


_BUILDERS = {"sgd": _sgd, "adam": _adam, "adamw": _adam, "lars": _lars, "lamb": _lamb}
