"""One step of training after the other, by one process or as one of several.

Samples count the same whatever the shares: each process adds up the losses of its own, divided
by the size of the whole batch, and gradients are added up over micro-batches and processes. A
step whose gradients are not finite changes nothing, neither weights nor running statistics.

Nothing here reads from the device: the host runs ahead of it, and a small network, whose kernels
take less time than launching them, is not held up twice.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.methods import optim
from trainer.methods.loss import batch_loss
from trainer.methods.mixing import Targets
from trainer.process.device import autocast_dtype
from trainer.process.world import World
from trainer.recipes.recipe import Recipe
from trainer.run import guard
from trainer.run.average import AveragedWeights
from trainer.run.counters import Counters, StepCounters
from trainer.run.guard import LossScaler, Statistics


class Stepper:
    """The network, its optimiser, and what goes with them into a checkpoint.

    `compiled`: by torch.compile. `dtype`: what matrix products run in, None for float32.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, world: World, *, compiled: bool = False
    ) -> None:
        self.recipe, self.world, device = recipe, world, world.device
        # on the CPU, channels-last convolutions of few channels corrupt memory (torch 2.15)
        last = device.type == "cuda"
        self._format = torch.channels_last if last else torch.contiguous_format
        if recipe.sync_bn and world.size > 1:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        pure = recipe.precision == "half"
        self.network = network.to(device, torch.float16 if pure else None)
        self.network.to(memory_format=self._format)
        self._statistics = Statistics(self.network)
        self.ema = self._averaged() if recipe.ema else None
        self.optimizer = optim.build(self.network, recipe.optimizer)
        self.dtype = autocast_dtype(recipe.precision, device)
        self.scaler = LossScaler(device, enabled=self.dtype == torch.float16 and not pure)
        self._counters = StepCounters(device)
        forward = self._compiled() if compiled else self.network
        self._forward = forward if world.size == 1 else self._distributed(forward)

    def step(
        self, inputs: Tensor, targets: Targets, lr: float, batch: int, epoch: float = 0.0
    ) -> None:
        """One update by this process' share of a batch of `batch` samples, after `epoch` epochs;
        none if the gradients are not finite. What came of it is in the counters.
        """
        optim.set_rates(self.optimizer, lr, epoch)
        self._statistics.keep()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(inputs, targets, batch)
        weights = [p for p in self.network.parameters() if p.grad is not None]
        gradients = [p.grad for p in weights if p.grad is not None]
        skipped = self.scaler.unscale(gradients)
        if clip := self.recipe.optimizer.clip_norm:
            nn.utils.clip_grads_with_norm_(weights, clip, _norm(gradients))
        guard.update(self.optimizer, skipped)
        self._statistics.restore(skipped)
        self.scaler.update(skipped)
        if self.ema is not None:
            self.ema.update(skipped)
        self._counters.add(loss, skipped)

    def rehearse(self, inputs: Tensor, targets: Targets) -> None:
        """Take as much memory as a step does, and change nothing: one that must not count.

        What is free afterwards may be used for something else, such as a resident shard.
        """
        scaler, counters = self.scaler.state_dict(), self._counters
        self._counters = StepCounters(self.world.device)
        self.network.train()
        self.step(torch.full_like(inputs, torch.nan), targets, 0.0, max(len(inputs), 1))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.load_state_dict(scaler)
        self._counters = counters

    def read_counters(self) -> Counters:
        """What happened since the last reading; the only call here that waits for the device."""
        return self._counters.read()

    def _gradients(self, inputs: Tensor, targets: Targets, batch: int) -> Tensor:
        """Forward and backward, `micro_batch` samples at a time; their loss over `batch`."""
        size = self.recipe.micro_batch or max(len(inputs), 1)
        total = torch.zeros((), device=inputs.device)
        starts = range(0, len(inputs), size)
        for start in starts:
            part = slice(start, start + size)
            with self._synchronised(start == starts[-1]):
                logits = self._logits(inputs[part])
                aims = [(labels[part], weight) for labels, weight in targets]
                loss = batch_loss(logits, aims, self.recipe) / batch
                # averaged over the processes by torch, where the sum is meant
                torch.autograd.backward(self.scaler.scaled(loss * self.world.size))
            total += loss.detach()
        return total

    def _logits(self, inputs: Tensor) -> Tensor:
        """(B, classes); of inputs (B, 2, C, h, w) (B, 2, classes)."""
        views = inputs.flatten(0, -4)
        with self.autocast():
            logits = self._forward(views.contiguous(memory_format=self._format))
        return cast(Tensor, logits.float().view(*inputs.shape[:-3], -1))

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in the recipe's precision."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.world.device.type, self.dtype)

    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts, the same in all processes, ready to predict."""
        network = self.network if self.ema is None else self.ema.evaluated()
        self.world.broadcast([b for b in network.buffers() if b is not None])
        return network.eval()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the data."""
        state = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "counters": self._counters.state(),
        }
        return state if self.ema is None else {**state, "ema": self.ema.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self._counters.load_state(state["counters"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    def _averaged(self) -> AveragedWeights:
        return AveragedWeights(self.network, self.recipe.ema)

    def _compiled(self) -> nn.Module:
        """With CUDA graphs where one network's whole forward pass is one call a step: they launch
        all kernels of a small network at once, but a gradient of an earlier micro-batch would be
        overwritten.
        """
        alone = self.world.size == 1 and not self.recipe.micro_batch
        graphs = alone and self.world.device.type == "cuda"
        mode = "reduce-overhead" if graphs else "default"
        return cast(nn.Module, torch.compile(self.network, mode=mode))

    def _distributed(self, network: nn.Module) -> nn.Module:
        device = self.world.device
        return DistributedDataParallel(network, [device.index] if device.type == "cuda" else None)

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients go from process to process once a step, with its last micro-batch."""
        if self.world.size == 1 or last:
            return nullcontext()
        return cast(DistributedDataParallel, self._forward).no_sync()


def _norm(gradients: list[Tensor]) -> Tensor:
    """() float32; of float16 gradients too, where torch's own is infinite from 65,504 on."""
    norms: Sequence[Tensor] = torch._foreach_norm(gradients, 2.0, torch.float32)
    return torch.stack(list(norms)).square().sum().sqrt()
