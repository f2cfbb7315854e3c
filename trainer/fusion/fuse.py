"""Logits of the sub-networks on calib in; one weight per network out.

Fused logits are Σ_k w_k · f_k. Weights are fitted on calib alone, so that val stays
untouched (the published code ranks by accuracy on val). logits: (networks, n, classes).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Logits = NDArray[np.float32]
Weights = NDArray[np.float64]
_GEOMETRIC_Q = tuple(np.arange(0.05, 1.0, 0.05).round(2).tolist())


def fuse(logits: Logits, weights: Weights) -> Logits:
    """Σ_k w_k · f_k: (n, classes)."""
    return np.asarray(np.einsum("k,knc->nc", weights.astype(np.float32), logits))


def average(networks: int) -> Weights:
    """Equal weights that add up to 1."""
    return np.full(networks, 1.0 / networks)


def geometric(logits: Logits, labels: NDArray[np.int64]) -> tuple[Weights, float]:
    """Weights q·(1−q)^rank, ranks by accuracy; q has the best accuracy, then NLL. And q."""
    accuracy = [top1(network, labels) for network in logits]
    rank = np.empty(len(logits))
    rank[np.argsort([-a for a in accuracy], kind="stable")] = np.arange(len(logits))
    tried = []
    for q in _GEOMETRIC_Q:
        weights = q * (1 - q) ** rank
        fused = fuse(logits, weights)
        tried.append((top1(fused, labels), -nll(fused, labels), q, weights))
    _, _, q, weights = max(tried, key=lambda entry: entry[:3])
    return weights, q


def learned(logits: Logits, labels: NDArray[np.int64]) -> Weights:
    """Non-negative weights with the least NLL; a convex problem, solved by L-BFGS-B.

    A Gaussian prior of unit width around 0, worth about one sample, keeps them finite where
    the networks make no mistake on calib. Exact zeros mean that a network adds nothing.
    """
    start = average(len(logits))
    found = minimize(
        _nll_and_gradient,
        start,
        args=(logits.astype(np.float64), labels),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * len(logits),
    )
    return np.asarray(found.x, dtype=np.float64)


def _nll_and_gradient(
    weights: Weights, logits: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[float, Weights]:
    fused = np.einsum("k,knc->nc", weights, logits)
    log_probabilities = fused - _logsumexp(fused)
    residual = np.exp(log_probabilities)
    rows = np.arange(len(labels))
    loss = -log_probabilities[rows, labels].mean() + 0.5 * (weights @ weights) / len(labels)
    residual[rows, labels] -= 1.0
    gradient = (np.einsum("knc,nc->k", logits, residual) + weights) / len(labels)
    return float(loss), gradient


def _logsumexp(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over classes, kept as (n, 1)."""
    top = logits.max(axis=1, keepdims=True)
    return np.asarray(top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))


def nll(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood in nats. logits: (n, classes)."""
    values = logits.astype(np.float64)
    picked = values[np.arange(len(labels)), labels]
    return float((_logsumexp(values)[:, 0] - picked).mean())


def top1(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Share of samples whose class has the largest logit."""
    return float((logits.argmax(axis=1) == labels).mean())
