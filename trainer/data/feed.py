"""The batches of each epoch, streamed from disk or gathered from the device's memory.

Which samples make which batch depends on (seed, epoch) alone: not on how the shard is fed, on
where an epoch is entered, or on how many processes share a batch.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from trainer.data.groups import PlaneGroupLoader
from trainer.data.loader import Batches, ShardLoader
from trainer.process.device import free_memory, sent
from trainer.process.world import World

log = logging.getLogger(__name__)
KINDS = ("auto", "stream", "resident")
# Of the free memory, what a resident shard may take: of a GPU's after a rehearsed step (training
# has what it needs then, but for evaluation's temporaries and fragmentation), of the host's before
_SHARES = {"cuda": 0.8, "cpu": 0.5}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The order of training: each epoch a new permutation, cut into whole batches, of which
    this process takes its share. A last partial batch is left out (of more than one). `repeats`:
    of each image in a batch (Hoffer et al., "Augment your batch"); those left out differ by epoch.
    """

    samples: int
    batch_size: int
    seed: int
    world: World
    repeats: int = 1

    @property
    def batch(self) -> int:
        """Samples of one step, over all processes."""
        return min(self.batch_size, self.samples)

    @property
    def share(self) -> slice:
        """The part of each batch that is for this process."""
        return self.world.share(self.batch)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return self.samples // self.batch

    def order(self, epoch: int, first: int = 0) -> NDArray[np.int64]:
        """The samples that this process sees in an epoch from step `first` on."""
        found = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        different = -(-self.batch // self.repeats)  # in a batch
        batches = found[: self.steps * different].reshape(self.steps, different)
        batches = np.tile(batches, self.repeats)[:, : self.batch]  # neighbours may be mixed
        return np.ascontiguousarray(batches[first:, self.share]).ravel()

    def positions(self, first: int = 0) -> NDArray[np.int64]:
        """Where in the epoch each of `order`'s samples comes, whoever sees it."""
        places = np.arange(self.steps * self.batch).reshape(self.steps, self.batch)
        return np.ascontiguousarray(places[first:, self.share]).ravel()


class Feed(Protocol):
    """Where batches come from: planes (B, C, h, w), or groups of them (B, g, C, h, w)."""

    kind: str
    batch_size: int
    samples: int

    def batches(self, order: NDArray[np.int64]) -> Batches:
        """The samples of `order`, `batch_size` at a time."""


Loader = ShardLoader | PlaneGroupLoader


class Resident:
    """A whole split, decoded once into the device's memory."""

    kind = "resident"

    def __init__(self, loader: Loader) -> None:
        self.samples, self.batch_size = loader.samples, loader.batch_size
        shape, device = loader.shape, loader.device
        self._values = torch.empty((self.samples, *shape), dtype=torch.int8, device=device)
        self._labels = torch.empty(self.samples, dtype=torch.int64, device=device)
        start = 0
        for values, labels in loader.batches(np.arange(self.samples)):
            self._values[start : start + len(labels)] = values
            self._labels[start : start + len(labels)] = labels
            start += len(labels)

    def batches(self, order: NDArray[np.int64]) -> Batches:
        """The samples of `order`, `batch_size` at a time."""
        chosen = sent(order, self._values.device)
        for start in range(0, len(order), self.batch_size):
            part = chosen[start : start + self.batch_size]
            yield self._values.index_select(0, part), self._labels.index_select(0, part)


def feed(loader: Loader, kind: str, random_crops: bool) -> Feed:
    """The loader itself, or its split resident in memory; `auto`: resident where the memory that is
    free holds it, with something to spare.
    """
    size = loader.samples * int(np.prod(loader.shape))
    free = free_memory(loader.device)
    if kind == "auto":
        fits = size <= _SHARES[loader.device.type] * free and not random_crops
        kind = "resident" if fits else "stream"
    if kind == "stream":
        log.info("%s: streamed", loader.path)
        return loader
    if random_crops:
        raise ConfigError("--feed resident: random crops are decoded anew in each epoch; stream")
    if size > free:
        raise ConfigError(
            f"--feed resident: {loader.path} takes {size / 1e9:.1f} GB decoded, but only "
            f"{free / 1e9:.1f} GB are free: stream it"
        )
    log.info("%s: resident, %.2f GB of %.1f GB free", loader.path, size / 1e9, free / 1e9)
    return Resident(loader)
