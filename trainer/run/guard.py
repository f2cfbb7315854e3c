"""What keeps a step whose gradients are not finite from changing anything, decided on the device.

Reading the decision would make the host wait for the device in every step, so all of it goes by a
tensor `skipped`: () float32, 1 for a step that must not count, else 0.
"""

from inspect import unwrap
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

_FIRST_SCALE, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000  # as torch's GradScaler
FUSED = (torch.optim.SGD, torch.optim.Adam)  # AdamW is an Adam; their kernels look at found_inf


class LossScaler:
    """Scales the loss for float16, and finds gradients that are not finite in any precision.

    torch's GradScaler does the first, but reads from the device for any optimiser that is not
    fused, does nothing of the second where it is not enabled, and refuses a state that a run wrote
    on a machine that trains in bfloat16.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = torch.full((), _FIRST_SCALE, device=device)
        self._tracker = torch.zeros((), dtype=torch.int32, device=device)
        self._one = torch.ones((), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """What backward is to start from."""
        return loss * self.scale if self.enabled else loss

    def unscale(self, gradients: list[Tensor]) -> Tensor:
        """`skipped`; the gradients are divided by the scale in place."""
        skipped = torch.zeros_like(self.scale)
        inverse = self.scale.double().reciprocal().float() if self.enabled else self._one
        for alike in _by_dtype(gradients):
            torch._amp_foreach_non_finite_check_and_unscale_(alike, skipped, inverse)
        return skipped

    def update(self, skipped: Tensor) -> None:
        """Halve the scale after a step that overflowed, double it after many that did not."""
        if self.enabled:
            torch._amp_update_scale_(
                self.scale, self._tracker, skipped, _GROWTH, _BACKOFF, _INTERVAL
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Scale, and steps since it last changed."""
        return {"scale": self.scale.clone(), "tracker": self._tracker.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        self.scale.copy_(state["scale"])
        self._tracker.copy_(state["tracker"])


class Statistics:
    """A network's buffers, kept before a step and put back after one that must not count: those of
    a dtype pass through one tensor, in a few kernels a dtype instead of two a buffer.

    Not views of that tensor, which would be simpler: torch.compile gives up CUDA graphs for a
    network that changes views of something else.
    """

    def __init__(self, network: nn.Module) -> None:
        alike = _by_dtype([b for b in network.buffers() if b is not None])
        self._kinds = [(buffers, _Flat(buffers), _Flat(buffers)) for buffers in alike]

    def keep(self) -> None:
        """Remember the buffers as they are now."""
        for buffers, before, _ in self._kinds:
            torch._foreach_copy_(before.parts, buffers)

    def restore(self, skipped: Tensor) -> None:
        """Put back what was kept, if the step must not count."""
        for buffers, before, now in self._kinds:
            torch._foreach_copy_(now.parts, buffers)
            torch.where(skipped > 0, before.whole, now.whole, out=now.whole)
            torch._foreach_copy_(buffers, now.parts)


class _Flat:
    """Room for tensors of one dtype in one: `whole`, and views of it in their shapes and strides,
    without which copying a list falls apart into a kernel for each of its tensors.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        sizes = [tensor.numel() for tensor in tensors]
        self.whole = tensors[0].new_empty(sum(sizes))
        parts = torch.split(self.whole, sizes)
        self.parts = [
            part.as_strided(t.shape, t.stride(), part.storage_offset())
            for part, t in zip(parts, tensors, strict=True)
        ]


@torch.no_grad()
def update(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """A step of the optimiser, if it is to count.

    LARS and LAMB know nothing of it: their weights and momenta are kept and put back. (LAMB's own
    count of steps, which corrects the bias of the first ones, goes on.)
    """
    if isinstance(optimizer, FUSED):
        vars(optimizer).update(grad_scale=None, found_inf=skipped)
        unwrap(type(optimizer).step)(optimizer)  # what is around it imports torch's compiler, 4 s
        return
    kept = {tensor: tensor.clone() for tensor in _tensors(optimizer)}
    optimizer.step()
    for tensor in _tensors(optimizer):  # what the first step made was 0 before
        tensor.copy_(torch.where(skipped > 0, kept.get(tensor, torch.zeros_like(tensor)), tensor))


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Weights and what the optimiser keeps of each."""
    weights: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    states: list[Any] = [v for state in optimizer.state.values() for v in state.values()]
    return weights + [v for v in states if isinstance(v, Tensor)]


def _by_dtype(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Lists of one dtype each: kernels over lists take a slow path for mixed ones."""
    ordered = sorted(tensors, key=lambda tensor: str(tensor.dtype))
    return [list(alike) for _, alike in groupby(ordered, key=lambda tensor: tensor.dtype)]
