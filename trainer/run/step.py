"""A network and a recipe in; one step of training after the other, alone or with other processes.

Samples count the same whatever the shares: each process adds up the losses of its own, divided
by the size of the whole batch, and gradients are added up over micro-batches and processes. A
step whose gradients are not finite changes nothing, neither weights nor running statistics.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer.methods import optim
from trainer.methods.loss import batch_loss
from trainer.methods.mixing import Targets
from trainer.process.device import autocast_dtype
from trainer.process.world import World
from trainer.recipes.recipe import Recipe


class Stepper:
    """The network, its optimiser, and what goes with them into a checkpoint."""

    def __init__(
        self, network: nn.Module, recipe: Recipe, world: World, *, compile_network: bool = False
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
        self.ema = self._averaged() if recipe.ema else None
        self.optimizer = optim.build(self.network, recipe.optimizer)
        self._dtype = autocast_dtype(recipe.precision, device)
        scaled = self._dtype == torch.float16 and not pure
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self._statistics = [b for b in self.network.buffers() if b is not None]
        self._before = [buffer.clone() for buffer in self._statistics]
        compiled = cast(nn.Module, torch.compile(network)) if compile_network else network
        self._forward = compiled if world.size == 1 else self._distributed(compiled)

    def step(self, inputs: Tensor, targets: Targets, lr: float, batch: int) -> Tensor | None:
        """One update; the mean loss of this process' share of a batch of `batch` samples,
        scaled by the share. None, and no update, if the gradients are not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        _copy(self._statistics, self._before)
        self.optimizer.zero_grad(set_to_none=True)
        total = self._gradients(inputs, targets, batch)
        self.scaler.unscale_(self.optimizer)
        weights = [p for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        finite = bool(torch.isfinite(norm))
        if finite:
            if clip := self.recipe.optimizer.clip_norm:
                nn.utils.clip_grads_with_norm_(weights, clip, norm)
            self.scaler.step(self.optimizer)
        else:
            _copy(self._before, self._statistics)
        self.scaler.update()
        if finite and self.ema is not None:
            self.ema.update_parameters(self.network)
        return total if finite else None

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
                torch.autograd.backward(self.scaler.scale(loss * self.world.size))
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
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.world.device.type, self._dtype)

    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts, the same in all processes, ready to predict."""
        network = self.network if self.ema is None else self.ema.module
        self.world.broadcast([b for b in network.buffers() if b is not None])
        return network.eval()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the data."""
        state = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        return state if self.ema is None else {**state, "ema": self.ema.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    def _averaged(self) -> AveragedModel:
        average = get_ema_multi_avg_fn(self.recipe.ema)  # type: ignore[no-untyped-call]
        return AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)

    def _distributed(self, network: nn.Module) -> nn.Module:
        device = self.world.device
        return DistributedDataParallel(network, [device.index] if device.type == "cuda" else None)

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients go from process to process once a step, with its last micro-batch."""
        if self.world.size == 1 or last:
            return nullcontext()
        return cast(DistributedDataParallel, self._forward).no_sync()


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)
