"""A run that is not to be started in; what it would be, in lines, out. Nothing is written."""

from typing import Any

import torch
from torch import nn

from trainer.data.loader import ShardLoader
from trainer.data.normalise import Normaliser
from trainer.jobs.shards import Group
from trainer.methods.schedule import lr_at
from trainer.process.device import pick_device
from trainer.process.world import World
from trainer.run.network import build_network
from trainer.run.setup import make_augmenter, make_plan, total_steps
from trainer.run.step import Stepper

_POINTS = 11  # at which the learning rate is shown
_SCALES = 17  # of the loss with float16, from 2^16 to 1: the first ones may overflow


def dry_run(group: Group, k: int) -> list[str]:
    """One step of shard `k` on a real batch: parameters, memory, steps, learning rates."""
    recipe, data, device = group.recipe, group.data, pick_device()
    group.data.manifest.check_shard(k)
    world = World(0, 1, device)
    plan = make_plan(recipe, data, world)
    network = build_network(recipe, data.manifest)
    stepper = Stepper(network, recipe, world)
    normaliser = Normaliser(data.manifest, k, device)
    augmenter = make_augmenter(recipe, data, k, plan, normaliser)
    loader = ShardLoader(data, "train", k, batch_size=plan.batch, device=device)
    values, labels = next(loader.batches(plan.order(0)[: plan.batch]))
    inputs, targets = augmenter(values, labels, 0, 0)
    for _ in range(_SCALES if stepper.scaler.is_enabled() else 1):
        saved = _SavedBytes()
        with saved:
            loss = stepper.step(inputs, targets, 0.0, plan.batch)
        if loss is not None:
            break
    first = "not finite" if loss is None else f"{loss:.4f}"
    steps = total_steps(recipe, plan)
    return [
        f"{recipe.model} on {'×'.join(map(str, inputs.shape[-3:]))}, {len(data.manifest.classes)} "
        f"classes: {count(network):,} parameters",
        f"would be {group.path}/shard_{k:02d}",
        f"the first {plan.batch} of {plan.samples:,} images: loss {first}",
        f"{steps:,} steps, {plan.steps:,} an epoch, {steps / plan.steps:.1f} epochs",
        _memory(network, stepper, saved.bytes),
        "learning rate by step: " + _rates(recipe, steps, plan.steps),
    ]


def count(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _memory(network: nn.Module, stepper: Stepper, activations: int) -> str:
    states = [v for state in stepper.optimizer.state.values() for v in state.values()]
    kept = sum(v.nbytes for v in states if isinstance(v, torch.Tensor))
    weights = sum(p.nbytes for p in network.parameters())
    return (
        f"memory about {_mb(2 * weights + kept + activations)}: weights and gradients "
        f"{_mb(2 * weights)}, optimiser {_mb(kept)}, kept for the backward pass {_mb(activations)}"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _rates(recipe: Any, steps: int, per_epoch: int) -> str:
    shown = sorted({round(i * (steps - 1) / (_POINTS - 1)) for i in range(_POINTS)})
    peak = recipe.optimizer.lr
    rates = [lr_at(recipe.schedule, peak, s, steps=steps, per_epoch=per_epoch) for s in shown]
    return ", ".join(f"{step:,}: {rate:.3g}" for step, rate in zip(shown, rates, strict=True))


class _SavedBytes:
    """Counts what autograd keeps for the backward pass, each storage once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__(None, None, None)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor
