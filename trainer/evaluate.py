"""A network and a split in; logits, accuracy and negative log-likelihood out."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.loader import ShardLoader
from trainer.normalise import Normaliser


@dataclass(frozen=True)
class Metrics:
    """Shares of samples whose class is the first, or among the first five; mean NLL in nats."""

    top1: float
    top5: float
    nll: float
    samples: int


def metrics(logits: Tensor, labels: Tensor) -> Metrics:
    """logits: (n, classes), labels: (n,)."""
    logits = logits.double()
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    return Metrics(
        top1=hits[:, 0].double().mean().item(),
        top5=hits.any(dim=1).double().mean().item(),
        nll=F.cross_entropy(logits, labels).item(),
        samples=len(labels),
    )


@torch.inference_mode()
def predict_split(
    network: nn.Module, loader: ShardLoader, normaliser: Normaliser
) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) float32 and labels (n,), on the CPU, in the order of the shard."""
    was_training = network.training
    network.eval()
    logits, labels = [], []
    for values, truth in loader.epoch():
        logits.append(network(normaliser(values.float())).float().cpu())
        labels.append(truth.cpu().clone())
    network.train(was_training)
    return torch.cat(logits), torch.cat(labels)
