"""An exponential moving average of a network's weights, as good as the last one and steadier."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class AveragedWeights:
    """`decay`: the share of the average that a step leaves. The first step's weights are the first
    average. torch's own AveragedModel reads a counter from the device at each step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = deepcopy(network).eval().requires_grad_(requires_grad=False)
        both = [
            (own.detach(), now.detach())
            for own, now in zip(_tensors(self.module), _tensors(network), strict=True)
        ]
        self._averaged = [own for own, now in both if now.is_floating_point()]
        self._network = [now for _, now in both if now.is_floating_point()]
        self._counts = [(own, now) for own, now in both if not now.is_floating_point()]
        device = next(network.parameters()).device
        self._steps = torch.zeros((), device=device)
        self._new = torch.full((), 1 - decay, device=device)  # the share of a step's weights

    def update(self, skipped: Tensor) -> None:
        """Take in the weights after a step, if it counted."""
        share = torch.where(self._steps > 0, self._new, 1.0) * (1 - skipped)
        # lerp, but no lerp over lists takes its weight from the device
        change = torch._foreach_sub(self._network, self._averaged)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(self._averaged, change)
        self._steps += 1 - skipped

    def evaluated(self) -> nn.Module:
        """The averaged network; what is counted rather than averaged is the network's own."""
        for own, now in self._counts:
            own.copy_(now)
        return self.module

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, and how many steps are in them."""
        return {**self.module.state_dict(), "n_averaged": self._steps.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        weights = dict(state)
        self._steps.copy_(weights.pop("n_averaged"))
        self.module.load_state_dict(weights)


def _tensors(network: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*network.parameters(), *(b for b in network.buffers() if b is not None)]
