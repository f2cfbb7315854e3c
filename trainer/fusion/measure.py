"""Measures ways to fuse the same networks on a split, all in one pass over it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.fusion.figures import ROWS, Outcomes, outcomes
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
    networks: int,
    samples: int,
    fused: dict[str, Pooling],
    curve: list[Pooling],
    advance: Advance,
) -> Measured:
    """Per sample only outcomes are kept; of `curve` only sums.

    What is kept lies in memory from the beginning. A small result that stayed behind between the
    large temporaries of each batch would leave a hole there that none of the next fits into: at
    10,450 classes and 36 networks memory then grew without end.
    """
    rows = np.empty((networks + len(fused), ROWS, samples), np.float32)
    truth = np.empty(samples, np.int64)
    hits, differ = np.zeros(len(curve), np.int64), np.zeros((networks, networks), np.int64)
    start = 0
    for logits, labels in answers:
        part = slice(start, start := start + len(labels))
        for k, one in enumerate(logits):
            rows[k, :, part] = outcomes(one, labels).cpu()
        for k, pooling in enumerate(fused.values(), networks):
            rows[k, :, part] = outcomes(pooling(logits), labels).cpu()
        for i, pooling in enumerate(curve):
            hits[i] += int((pooling(logits).argmax(1) == labels).sum())
        first = logits.argmax(2)
        differ += (first[:, None] != first[None]).sum(2).cpu().numpy()
        truth[part] = labels.cpu()
        advance(len(labels), "")
    assert start == samples, f"{start} of {samples} samples"
    found = [Outcomes.of(own) for own in rows]
    return Measured(
        networks=found[:networks],
        fused=dict(zip(fused, found[networks:], strict=True)),
        curve=(hits / samples).tolist(),
        labels=truth,
        differ=differ / samples,
    )
