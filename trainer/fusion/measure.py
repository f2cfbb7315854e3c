"""Measures ways to fuse the same networks on a split, all in one pass over it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.fusion.figures import Outcomes, outcomes
from trainer.fusion.pooling import Pooling

Advance = Callable[[int, str], None]


@dataclass(frozen=True)
class Measured:
    """What a pass found out. networks, fused: the outcomes of each; curve: accuracy of each
    pooling of which nothing more is kept; differ: (K, K) shares of samples to which two networks
    give different classes; labels: (n,).
    """

    networks: list[Outcomes]
    fused: dict[str, Outcomes]
    curve: list[float]
    labels: NDArray[np.int64]
    differ: NDArray[np.float64]


def measure(
    answers: Iterable[tuple[Tensor, Tensor]],
    fused: dict[str, Pooling],
    curve: list[Pooling],
    advance: Advance,
) -> Measured:
    """Per sample only outcomes are kept; of `curve` only sums."""
    alone: list[list[Tensor]] = []
    together: dict[str, list[Tensor]] = {name: [] for name in fused}
    hits = torch.zeros(len(curve), dtype=torch.float64)
    differ, truth = None, list[Tensor]()
    for logits, labels in answers:
        alone = alone or [[] for _ in logits]
        for parts, one in zip(alone, logits, strict=True):
            parts.append(outcomes(one, labels).cpu())
        for name, pooling in fused.items():
            together[name].append(outcomes(pooling(logits), labels).cpu())
        for i, pooling in enumerate(curve):
            hits[i] += float((pooling(logits).argmax(1) == labels).sum())
        first = logits.argmax(2)
        pairs = (first[:, None] != first[None]).sum(2).double().cpu()
        differ = pairs if differ is None else differ + pairs
        truth.append(labels.cpu())
        advance(len(labels), "")
    assert differ is not None, "a split with samples"
    samples = sum(map(len, truth))
    return Measured(
        networks=[Outcomes.joined(parts) for parts in alone],
        fused={name: Outcomes.joined(parts) for name, parts in together.items()},
        curve=(hits / samples).tolist(),
        labels=torch.cat(truth).numpy(),
        differ=(differ / samples).numpy(),
    )
