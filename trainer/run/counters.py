"""What training counts on the device, where reading it every step would make the host wait."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Places in the device's tensor; what is kept for the run's whole life comes last
_LOSS, _LONGEST, _SKIPPED, _IN_A_ROW = range(4)


@dataclass(frozen=True)
class Counters:
    """Of the steps since the last reading: how many there were (`steps`), how many of them
    counted (`counted`: with finite gradients), the sum of their losses (this process' share of
    each), and the longest row of steps skipped (`longest`, with what went before). Of the run:
    all steps skipped, and those skipped in a row up to now.
    """

    steps: int
    counted: int
    loss: float
    longest: int
    skipped: int
    in_a_row: int


class StepCounters:
    """Counts steps without reading from the device."""

    def __init__(self, device: torch.device) -> None:
        self._values = torch.zeros(4, dtype=torch.float64, device=device)
        self._places = self._values.unbind()
        self._steps = 0
        self._skipped_before = 0

    def add(self, loss: Tensor, skipped: Tensor) -> None:
        """One step; `skipped`: () float32, 1 where its gradients were not finite, else 0."""
        places = self._places
        self._steps += 1
        places[_LOSS].add_(torch.where(skipped > 0, 0.0, loss))
        places[_SKIPPED].add_(skipped)
        places[_IN_A_ROW].add_(1).mul_(skipped)
        torch.maximum(places[_LONGEST], places[_IN_A_ROW], out=places[_LONGEST])

    def read(self) -> Counters:
        """The counters now; waits for the device. What is per reading starts anew."""
        loss, longest, skipped, in_a_row = self._values.tolist()
        recent = int(skipped) - self._skipped_before
        found = Counters(
            self._steps, self._steps - recent, loss, int(longest), int(skipped), int(in_a_row)
        )
        self._values[: _LONGEST + 1] = 0
        self._steps, self._skipped_before = 0, int(skipped)
        return found

    def state(self) -> dict[str, Tensor]:
        """What of the counters belongs to the run."""
        return {
            "skipped": self._values[_SKIPPED].clone(),
            "in_a_row": self._values[_IN_A_ROW].clone(),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        self._values.zero_()
        self._values[_SKIPPED], self._values[_IN_A_ROW] = state["skipped"], state["in_a_row"]
        self._steps, self._skipped_before = 0, int(state["skipped"])
