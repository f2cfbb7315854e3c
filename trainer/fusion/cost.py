"""What a trained network cost, and costs to use, so that classifiers can be compared fairly."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.format.manifest import Manifest
from trainer.fusion.members import Member
from trainer.run.network import network_on_meta, recipe_of

_sizes: dict[str, tuple[int, int]] = {}
_BACKWARD = 2  # times a forward pass: gradients of inputs and of weights


def cost(member: Member, data: Manifest) -> dict[str, Any]:
    """`parameters`; `mflop` of a forward pass of one image, as torch counts (a product and a sum
    are 2); of training `images`, `pflop` (three forward passes an image), `hours`.
    """
    recipe, result = recipe_of(member.run), member.run.result or {}
    shape = _input_shape(data, len(member.planes))
    key = f"{recipe.model} {recipe.model_args} {len(data.classes)} {shape}"
    if key not in _sizes:  # the networks of a group are of one size
        _sizes[key] = _size(network_on_meta(member.run, data, len(member.planes)), shape)
    parameters, flops = _sizes[key]
    images = int(result.get("steps", 0)) * min(recipe.batch_size, data.written("train"))
    return {
        "parameters": parameters,
        "mflop": round(flops / 1e6, 3),
        "images": images,
        "pflop": round((1 + _BACKWARD) * flops * images / 1e15, 6),
        "hours": round(result.get("train_seconds", 0.0) / 3600, 4),
    }


def _input_shape(data: Manifest, planes: int) -> tuple[int, int, int]:
    channels, height, width = data.preparation.input_shape
    return planes * channels, height, width


def _size(network: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Parameters, and FLOPs of an image (C, H, W)."""
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, *shape, device="meta"))
    return sum(p.numel() for p in network.parameters()), int(counter.get_total_flops())


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all networks of a classifier: one image passes through each of them."""
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    largest = max(row["hours"] for row in rows)
    return total | {"pflop": round(total["pflop"], 6), "largest_hours": largest}
