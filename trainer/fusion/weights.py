"""Finds the weight of each network in the fused classifier, on images kept apart for that.

Nothing here may see a split that figures are reported on; the published code ranks its networks
by accuracy on val, which `published` repeats for comparison.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from trainer.fusion.pooling import Pooling

GEOMETRIC_Q = tuple(np.arange(0.05, 1.0, 0.05).round(2).tolist())
_ROUNDS = 50  # of the greedy selection, at most
_BLOCK = 2**22  # logits that are looked at together
_TEMPERATURES = (0.02, 50.0)  # where networks make no mistake there is no least loss


@dataclass(frozen=True)
class Answers:
    """What K networks say of n samples. logits: (K, n, classes) float32; labels: (n,) int64."""

    logits: Tensor
    labels: Tensor

    def blocks(self) -> Iterator["Answers"]:
        """A part of the samples after the other."""
        networks, samples, classes = self.logits.shape
        size = max(1, _BLOCK // (networks * classes))
        for start in range(0, samples, size):
            part = slice(start, start + size)
            yield Answers(self.logits[:, part], self.labels[part])


@dataclass(frozen=True)
class Fitted:
    """One way to fuse, with what was found out on the way: `q`, `network`, `chosen`."""

    pooling: Pooling
    notes: dict[str, Any] = field(default_factory=dict)


def fit(answers: Answers, method: str, over: str = "logits") -> Fitted | None:
    """`learned` or one of the ways below; None of `learned` where no combination is better than
    equal odds for all classes. All but `learned`, which contains one, get a temperature fitted
    after pooling.
    """
    if method == "learned":
        weights = learned(answers)
        return Fitted(Pooling(tuple(weights))) if any(weights) else None
    found = _WAYS[method](answers, over)
    return replace(found, pooling=with_temperature(answers, found.pooling))


def average(answers: Answers, over: str) -> Fitted:
    """Equal weights that add up to 1."""
    networks = len(answers.logits)
    return Fitted(Pooling((1.0 / networks,) * networks, over=over))


def geometric(answers: Answers, over: str) -> Fitted:
    """Weights q·(1−q)^rank, ranks by accuracy; q has the best accuracy, then NLL."""
    ranks = ranked(answers)
    tried = [_geometric(ranks, q, over) for q in GEOMETRIC_Q]
    best, _ = _best(answers, len(tried), lambda i: pool(answers, tried[i]))
    return Fitted(tried[best], {"q": GEOMETRIC_Q[best]})


def published(answers: Answers, q: float) -> Fitted:
    """As the published code does: q·(1−q)^rank, ranked on the split that is reported."""
    return Fitted(_geometric(ranked(answers), q, "logits"), {"q": q})


def _geometric(ranks: list[int], q: float, over: str) -> Pooling:
    return Pooling(tuple(q * (1 - q) ** rank for rank in ranks), over=over)


def ranked(answers: Answers) -> list[int]:
    """The rank of each network by accuracy, 0 for the best; of equal ones the first."""
    order = sorted(range(len(answers.logits)), key=lambda k: -top1(answers.logits[k], answers))
    return [order.index(k) for k in range(len(order))]


def single_best(answers: Answers, over: str) -> Fitted:
    """The most accurate network alone; of equal ones that with the least NLL."""
    networks = len(answers.logits)
    best, _ = _best(answers, networks, lambda k: answers.logits[k])
    return Fitted(Pooling(_one_hot(best, networks), over=over), {"network": best})


def subset(answers: Answers, over: str) -> Fitted:
    """Greedy forward selection with replacement (Caruana et al. 2004): the network that raises
    the accuracy of the mean most is added, again and again; the best of all these means.
    """
    counts = np.zeros(len(answers.logits), np.int64)
    each = answers.logits if over == "logits" else answers.logits.softmax(2)
    total = torch.zeros_like(each[0])
    best, chosen, since = (-1.0, 0.0), counts, 0
    for members in range(1, _ROUNDS + 1):
        mean = _mean_with(total, each, members, over)
        k, score = _best(answers, len(each), mean)
        counts[k] += 1
        total += each[k]
        if score > best:
            best, chosen, since = score, counts.copy(), 0
        elif (since := since + 1) == len(each):
            break
    weights = tuple((chosen / chosen.sum()).tolist())
    return Fitted(Pooling(weights, over=over), {"chosen": chosen.tolist()})


def best_order(answers: Answers) -> list[int]:
    """Networks in the order in which each raises the accuracy of the mean most."""
    left, order = list(range(len(answers.logits))), list[int]()
    total = torch.zeros_like(answers.logits[0])
    while left:
        mean = _mean_with(total, answers.logits, len(order) + 1, "logits")
        best, _ = _best(answers, len(left), lambda i: mean(left[i]))  # noqa: B023 - used at once
        order.append(left.pop(best))
        total += answers.logits[order[-1]]
    return order


def _mean_with(total: Tensor, each: Tensor, members: int, over: str) -> Callable[[int], Tensor]:
    """The mean of a sum and network k, as logits; one at a time, as they are large."""

    def mean(k: int) -> Tensor:
        found = (total + each[k]) / members
        return found if over == "logits" else found.log()

    return mean


def _best(
    answers: Answers, count: int, logits_of: Callable[[int], Tensor]
) -> tuple[int, tuple[float, float]]:
    """Which of some (n, classes) has the best accuracy, of equal ones the least NLL; and both
    figures, the larger, the better.
    """
    accuracy = [top1(logits_of(i), answers) for i in range(count)]
    equal = [i for i in range(count) if accuracy[i] == max(accuracy)]
    losses = [float(F.cross_entropy(logits_of(i), answers.labels)) for i in equal]
    at = losses.index(min(losses))
    return equal[at], (accuracy[equal[at]], -losses[at])


def learned(answers: Answers, among: list[int] | None = None) -> list[float]:
    """Non-negative weights of logits with the least NLL; a convex problem, solved by L-BFGS-B.
    among: the networks that may have one.

    A Gaussian prior of unit width around 0, worth about one sample, keeps them finite where
    the networks make no mistake. Exact zeros mean that a network adds nothing.
    """
    networks = range(len(answers.logits))
    used = networks if among is None else among
    found = minimize(
        lambda weights: _nll_and_gradient(answers, weights),
        np.array([1.0 / len(used) if k in used else 0.0 for k in networks]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None if k in used else 0.0) for k in networks],
    )
    return [float(weight) for weight in found.x]


def _nll_and_gradient(
    answers: Answers, weights: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    samples, device = len(answers.labels), answers.logits.device
    vector = torch.from_numpy(weights).to(device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    gradient = torch.zeros_like(vector)
    for block in answers.blocks():
        logits = block.logits.double()
        fused = torch.tensordot(vector, logits, 1)
        log_probabilities = fused.log_softmax(1)
        loss += F.nll_loss(log_probabilities, block.labels, reduction="sum")
        residual = log_probabilities.exp()
        residual[torch.arange(len(block.labels), device=device), block.labels] -= 1.0
        gradient += (logits.flatten(1) @ residual.flatten()).flatten()
    loss, gradient = loss + 0.5 * (vector @ vector), gradient + vector
    return float(loss) / samples, gradient.cpu().numpy() / samples


def with_temperature(answers: Answers, pooling: Pooling) -> Pooling:
    """The same with the temperature of the least NLL, which leaves the order of classes alone. A
    Gaussian prior of unit width on its logarithm, worth one sample, keeps it from 0 where the
    networks make no mistake.
    """
    pooled = pool(answers, pooling).double()

    def loss(log_temperature: float) -> float:
        prior = 0.5 * log_temperature**2 / len(answers.labels)
        return nll(pooled / np.exp(log_temperature), answers.labels) + prior

    bounds = tuple(np.log(_TEMPERATURES))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return replace(pooling, temperature=pooling.temperature * float(np.exp(found.x)))


def pool(answers: Answers, pooling: Pooling) -> Tensor:
    """(n, classes)."""
    return torch.cat([pooling(block.logits) for block in answers.blocks()])


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood in nats. logits: (n, classes)."""
    return float(F.cross_entropy(logits.double(), labels))


def top1(logits: Tensor, answers: Answers) -> float:
    """Share of samples whose class has the largest of these (n, classes)."""
    return float((logits.argmax(1) == answers.labels).double().mean())


def _one_hot(k: int, networks: int) -> tuple[float, ...]:
    return tuple(float(i == k) for i in range(networks))


_WAYS: dict[str, Callable[[Answers, str], Fitted]] = {
    "average": average,
    "geometric": geometric,
    "single-best": single_best,
    "subset": subset,
}
