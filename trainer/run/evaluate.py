"""A network and a split in; logits, accuracy and negative log-likelihood out."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.feed import Feed
from trainer.data.normalise import Normaliser
from trainer.process.stop import StopRequest
from trainer.process.world import World


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
def evaluate(
    network: nn.Module, feed: Feed, normaliser: Normaliser, world: World, stop: StopRequest
) -> Metrics | None:
    """Metrics over the whole split, each sample counted once, whatever the number of processes.

    None where a stop was asked for meanwhile (of one process alone: several could not agree).
    """
    own = np.array_split(np.arange(feed.samples), world.size)[world.rank]
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    for values, labels in feed.batches(own):
        if stop and world.size == 1:
            return None
        answers = _logits if values.dim() == 4 else _ten_crops
        sums += _sums(answers(network, normaliser, values), labels)
    return _means(world.sum(sums))


def _logits(network: nn.Module, normaliser: Normaliser, values: Tensor) -> Tensor:
    """(B, classes) float32 of values (B, C, h, w)."""
    logits: Tensor = network(normaliser(values.float()))
    return logits.float()


def _ten_crops(network: nn.Module, normaliser: Normaliser, values: Tensor) -> Tensor:
    """Logarithms (B, classes) of the mean probabilities of five crops (B, 5, C, h, w) and their
    mirror images; the network sees 5·B at a time.
    """
    crops = values.flatten(0, 1)
    logits = [_logits(network, normaliser, seen).double() for seen in (crops, crops.flip(-1))]
    views = torch.cat([part.view(*values.shape[:2], -1) for part in logits], dim=1)
    return F.log_softmax(views, dim=2).logsumexp(dim=1) - math.log(views.shape[1])


@torch.inference_mode()
def predict_split(network: nn.Module, feed: Feed, normaliser: Normaliser) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) float32 and labels (n,), on the CPU, in the order of the shard."""
    network.eval()
    logits, labels = [], []
    for values, truth in feed.batches(np.arange(feed.samples)):
        logits.append(_logits(network, normaliser, values).cpu())
        labels.append(truth.cpu().clone())
    return torch.cat(logits), torch.cat(labels)
