"""What is said of a classifier: shares of right answers, likelihood and calibration, each with its
95 % interval; and whether one classifier is better than another on the same images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

_Z = 1.959964  # of the normal distribution, two-sided 95 %
BINS = 15  # of confidence (Guo et al. 2017)
_DRAWS = 10_000
ROWS = 5  # of `outcomes`


@dataclass(frozen=True)
class Outcomes:
    """What became of each sample. top1, top5: (n,) bool, whether its class is the first, or among
    the first five; nll: (n,) float32, nats; confidence: (n,) float32, probability of the first;
    predicted: (n,) int32, the first.
    """

    top1: NDArray[np.bool_]
    top5: NDArray[np.bool_]
    nll: NDArray[np.float32]
    confidence: NDArray[np.float32]
    predicted: NDArray[np.int32]

    @classmethod
    def of(cls, found: NDArray[np.float32]) -> "Outcomes":
        """Of what `outcomes` gave: (ROWS, n)."""
        return cls(found[0] > 0, found[1] > 0, found[2], found[3], found[4].astype(np.int32))

    @property
    def ece(self) -> float:
        """Expected calibration error: |accuracy − confidence|, averaged over bins by their size."""
        return float(np.abs(self._residuals()[0]).sum() / len(self.top1))

    def _residuals(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Σ (hit − confidence) in each bin, and the variance of that sum."""
        bins = np.minimum((self.confidence * BINS).astype(np.int64), BINS - 1)
        residual: NDArray[np.float64] = self.top1 - self.confidence.astype(np.float64)
        sums = np.bincount(bins, residual, BINS).astype(np.float64)
        squares = np.bincount(bins, residual**2, BINS)
        return sums, squares - sums**2 / len(residual)

    def reliability(self) -> list[dict[str, float]]:
        """Of each bin of confidence that has samples: their `share` of all, their mean
        `confidence` and their `accuracy`.
        """
        bins = np.minimum((self.confidence * BINS).astype(np.int64), BINS - 1)
        count = np.bincount(bins, minlength=BINS)
        confidence = np.bincount(bins, self.confidence, BINS)
        hits = np.bincount(bins, self.top1, BINS)
        return [
            {"share": count[b] / len(bins), "confidence": confidence[b] / count[b],
             "accuracy": hits[b] / count[b]}
            for b in np.flatnonzero(count)
        ]  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """top1, top5 (shares, with Wilson's interval), nll (normal), ece; `samples`."""
        n = len(self.top1)
        if not n:
            return {"samples": 0}
        found: dict[str, Any] = {}
        for name in ("top1", "top5"):
            share = float(getattr(self, name).mean())
            found |= {name: share, f"{name}_interval": wilson(share, n)}
        nll = self.nll.astype(np.float64)
        half = _Z * float(nll.std()) / np.sqrt(n)
        mean = float(nll.mean())
        found |= {"nll": mean, "nll_interval": [mean - half, mean + half]}
        found |= {"ece": self.ece, "ece_interval": self._ece_interval()}
        return found | {"samples": n}

    def _ece_interval(self) -> list[float]:
        """± 1.96 deviations of the bootstrap's distribution, whose sums a bin are normal in the
        limit; the resampled values themselves lie above the estimate, since noise adds to |·|.
        """
        sums, variances = self._residuals()
        rng = np.random.default_rng(0)
        drawn = rng.normal(sums, np.sqrt(np.maximum(variances, 0)), (_DRAWS, BINS))
        half = _Z * float(np.abs(drawn).sum(1).std() / len(self.top1))
        return [max(0.0, self.ece - half), min(1.0, self.ece + half)]


def outcomes(logits: Tensor, labels: Tensor) -> Tensor:
    """(ROWS, B) float32: top1, top5, nll, confidence, predicted. logits: (B, classes)."""
    log_probabilities = logits.double().log_softmax(1)
    best = log_probabilities.topk(min(5, logits.shape[1]), dim=1)
    hits = best.indices == labels[:, None]
    nll = -log_probabilities.gather(1, labels[:, None])[:, 0]
    rows = [hits[:, 0], hits.any(1), nll, best.values[:, 0].exp(), best.indices[:, 0]]
    return torch.stack([row.double() for row in rows]).float()  # classes are exact up to 2²⁴


def wilson(share: float, n: int) -> list[float]:
    """The 95 % score interval of a share of n independent samples (Wilson 1927)."""
    centre = share + _Z**2 / (2 * n)
    half = _Z * float(np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)))
    return [(centre - half) / (1 + _Z**2 / n), (centre + half) / (1 + _Z**2 / n)]


def paired(own: NDArray[np.bool_], other: NDArray[np.bool_]) -> dict[str, Any]:
    """Two classifiers on the same images. own, other: (n,) whether each was right.

    `difference` of accuracy, own − other, its 95 % interval by a bootstrap over images (of the
    three outcomes of a pair, which is the same and quick), and McNemar's exact p.
    """
    n = len(own)
    gained, lost = int((own & ~other).sum()), int((other & ~own).sum())
    shares = np.array([gained, lost, n - gained - lost]) / n
    drawn = np.random.default_rng(0).multinomial(n, shares, _DRAWS)
    interval = np.percentile((drawn[:, 0] - drawn[:, 1]) / n, [2.5, 97.5]).tolist()
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return {
        "difference": (gained - lost) / n,
        "interval": interval,
        "only_own_right": gained,
        "only_other_right": lost,
        "mcnemar_p": float(p),
        "samples": n,
    }
