"""Measures a network on a split: logits, accuracy and negative log-likelihood.

One `Predictor` answers in training, in `ensemble` and in `predict`, so that the figures of all
three are of the same arithmetic.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.feed import Feed
from trainer.data.normalise import Normaliser
from trainer.methods.views import Views
from trainer.process.stop import StopRequest
from trainer.process.world import World


class Predictor(nn.Module):
    """A network with what stands before it: planes in, answers out. `dtype`: what matrix products
    run in, None for float32; normalisation is float32 in any case. `views`: in which ways it sees
    each image.
    """

    def __init__(
        self,
        network: nn.Module,
        normaliser: Normaliser,
        dtype: torch.dtype | None = None,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        self.network, self.normaliser, self.dtype = network, normaliser, dtype
        self.views = views

    def forward(self, values: Tensor) -> Tensor:
        """Logits (B, classes) float32 of planes (B, C, h, w), or of a group (B, g, C, h, w), as a
        feed gives them; of five crops (B, 5, C, h, w) of an image logarithms of the mean
        probabilities of them and their mirror images, of which the network sees 5·B at a time.
        """
        if values.dim() == 4 or self.normaliser.planes > 1:
            return self._averaged(values.flatten(1, -3))
        crops = values.flatten(0, 1)
        logits = [self._logits(seen).double() for seen in (crops, crops.flip(-1))]
        views = torch.cat([part.view(*values.shape[:2], -1) for part in logits], dim=1)
        mean = F.log_softmax(views, dim=2).logsumexp(dim=1) - math.log(views.shape[1])
        return mean.float()

    def _averaged(self, values: Tensor) -> Tensor:
        """The mean over the views."""
        if self.views is None:
            return self._logits(values)
        seen = [(self._logits(view), weight) for view, weight in self.views(values)]
        return torch.stack([logits * weight for logits, weight in seen]).sum(0)

    def _logits(self, values: Tensor) -> Tensor:
        inputs, kind = self.normaliser(values), values.device.type
        if kind == "cuda":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(kind, self.dtype, enabled=self.dtype is not None):
            logits: Tensor = self.network(inputs)
        return logits.float()


@dataclass(frozen=True)
class Metrics:
    """Shares of samples whose class is the first, or among the first five; mean NLL in nats."""

    top1: float
    top5: float
    nll: float
    samples: int


def metrics(logits: Tensor, labels: Tensor) -> Metrics:
    """logits: (n, classes), labels: (n,)."""
    return _means(_sums(logits, labels))


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """(4,) float64: hits among the first, hits among the first five, NLL, samples."""
    logits = logits.double()
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    nll = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack(
        [hits[:, 0].sum(), hits.any(dim=1).sum(), nll, torch.full_like(nll, len(labels))]
    )


def _means(sums: Tensor) -> Metrics:
    top1, top5, nll, samples = sums.tolist()
    return Metrics(top1 / samples, top5 / samples, nll / samples, int(samples))


@torch.inference_mode()
def evaluate(predictor: Predictor, feed: Feed, world: World, stop: StopRequest) -> Metrics | None:
    """Metrics over the whole split, each sample counted once, whatever the number of processes.

    None where a stop was asked for meanwhile (of one process alone: several could not agree).
    """
    own = np.array_split(np.arange(feed.samples), world.size)[world.rank]
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    for values, labels in feed.batches(own):
        if stop and world.size == 1:
            return None
        sums += _sums(padded_answers(predictor, values, feed.batch_size), labels)
    return _means(world.sum(sums))


@torch.inference_mode()
def predict_split(predictor: Predictor, feed: Feed) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) float32 and labels (n,), on the CPU, in the order of the shard."""
    logits, labels = [], []
    for values, truth in feed.batches(np.arange(feed.samples)):
        logits.append(padded_answers(predictor, values, feed.batch_size).cpu())
        labels.append(truth.cpu().clone())
    return torch.cat(logits), torch.cat(labels)


def padded_answers(predictor: Predictor, values: Tensor, batch_size: int) -> Tensor:
    """Logits of a last partial batch too, which a GPU gets filled up: cuDNN looks for the fastest
    kernels anew for each shape.
    """
    count = len(values)
    if values.is_cuda and count < batch_size:
        values = torch.cat([values, values[:1].expand(batch_size - count, *values.shape[1:])])
    answers: Tensor = predictor(values)
    return answers[:count]
