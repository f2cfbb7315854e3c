"""Says what a run would be, without starting it; nothing is written."""

from collections.abc import Iterator
from contextlib import closing

import torch
from torch import nn

from pipeline.format import manifest
from trainer.data.selection import Prepared
from trainer.process.device import pick_device
from trainer.process.world import World
from trainer.run.context import RunContext
from trainer.run.setup import remarks
from trainer.run.spec import RunSpec
from trainer.run.step import Stepper

_POINTS = 11  # at which the learning rate is shown
_SCALES = 17  # of the loss with float16, from 2^16 to 1: the first ones may overflow
_MOST = 64  # images of the step; memory is reckoned from it


def dry_run(spec: RunSpec) -> Iterator[str]:
    """Parameters, steps, learning rates of a run; then one step on real images, for the first
    loss and the memory.
    """
    data = Prepared(spec.data, manifest.load(spec.data))
    context = RunContext.build(spec, data, World(0, 1, pick_device()))
    recipe, planes, plan, steps = context.recipe, spec.planes, context.plan, context.steps
    stepper, network = context.stepper, context.stepper.network
    channels, height, width = data.manifest.preparation.input_shape
    shape = f"{len(planes) * channels}×{height}×{width}"
    yield (
        f"{recipe.model} on {shape}, {len(data.manifest.classes)} classes: "
        f"{count(network):,} parameters"
    )
    yield f"would be {spec.directory}"
    yield f"{steps:,} steps, {plan.steps:,} an epoch, {steps / plan.steps:.1f} epochs"
    yield "learning rate by step: " + _rates(context)
    yield from remarks(recipe, plan)

    with closing(context.batches(context.open_feed(fresh=True), 0, 1)) as batches:
        values, labels = next(batches)
        inputs, targets = context.augmenter(values, labels, 0, 0)
    at_once = min(recipe.micro_batch or plan.batch, plan.batch)
    seen = min(at_once, _MOST)
    inputs, targets = inputs[:seen], [(labels[:seen], weight) for labels, weight in targets]
    for _ in range(_SCALES if stepper.scaler.enabled else 1):
        saved = _SavedBytes(network)
        with saved:
            stepper.step(inputs, targets, 0.0, seen)
        counters = stepper.read_counters()
        if counters.counted:
            break
    first = f"{counters.loss:.4f}" if counters.counted else "not finite"
    yield f"the first {seen} of {plan.samples:,} images: loss {first}"
    yield _memory(network, stepper, saved.bytes * at_once // seen, at_once)


def count(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _memory(network: nn.Module, stepper: Stepper, activations: int, images: int) -> str:
    states = [v for state in stepper.optimizer.state.values() for v in state.values()]
    kept = sum(v.nbytes for v in states if isinstance(v, torch.Tensor))
    weights = sum(p.nbytes for p in network.parameters())
    averaged = weights if stepper.ema is not None else 0
    parts = {
        "weights and gradients": 2 * weights,
        "averaged weights": averaged,
        "optimiser": kept,
        f"kept of {images} images for the backward pass": activations,
    }
    said = ", ".join(f"{name} {_mb(size)}" for name, size in parts.items() if size)
    return f"memory about {_mb(sum(parts.values()))}: {said}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _rates(context: RunContext) -> str:
    last = context.steps - 1
    shown = sorted({round(i * last / (_POINTS - 1)) for i in range(_POINTS)})
    return ", ".join(f"{step:,}: {context.lr(step):.3g}" for step in shown)


class _SavedBytes:
    """Counts what autograd keeps for the backward pass beside weights, each storage once."""

    def __init__(self, network: nn.Module) -> None:
        self.bytes = 0
        self._seen = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
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
