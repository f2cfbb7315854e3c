"""How the answers of several networks become one."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.console import OVER


@dataclass(frozen=True)
class Pooling:
    """A sum with one weight w_k for each of K networks, softened by a temperature T.

    Over logits f_k: Σ w_k f_k / T. Over probabilities: log(Σ w_k softmax(f_k) / Σ w_k) / T. The
    softmax of either is the probability of each class.
    """

    weights: tuple[float, ...]
    temperature: float = 1.0
    over: str = "logits"

    def __call__(self, logits: Tensor) -> Tensor:
        """(K, B, classes) of the networks → (B, classes), as logits."""
        if self.over == "logits":
            weights = torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)
            fused: Tensor = torch.tensordot(weights / self.temperature, logits, 1)
            return fused
        total = sum(self.weights)
        used = [k for k, weight in enumerate(self.weights) if weight > 0]
        each = [logits[k].log_softmax(1) + math.log(self.weights[k] / total) for k in used]
        pooled = torch.stack(each).logsumexp(0)
        return pooled / self.temperature

    def alone(self, k: int) -> float:
        """The weight of network k, the temperature taken in: what figures show."""
        return self.weights[k] / self.temperature

    def row(self) -> dict[str, Any]:
        """For a JSON file; `Pooling(**row)` reads it."""
        return asdict(self) | {"weights": list(self.weights)}

    @classmethod
    def read(cls, row: dict[str, Any]) -> "Pooling":
        """From a JSON file; ValueError for what cannot be one."""
        weights = tuple(map(float, row["weights"]))
        found = cls(weights, float(row["temperature"]), str(row["over"]))
        positive = all(0 <= w < math.inf for w in weights) and any(weights)
        if not positive or not 0 < found.temperature < math.inf or found.over not in OVER:
            raise ValueError(f"weights {weights}, temperature {found.temperature}, {found.over}")
        return found
