"""Shards in a training loop of one's own: a torch data set that yields batches, see docs/api.md."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.errors import ConfigError
from pipeline.format import manifest
from trainer.data.groups import open_split
from trainer.data.normalise import Normaliser
from trainer.data.selection import Prepared, parse_shards

_CENTRE = 128  # of the uint8 that stands for 0


class Normalise(nn.Module):
    """uint8 planes (B, C, h, w) → float32 about zero mean and unit variance, the colour rotation of
    the planes undone. To be the first layer of a network, or called on a batch; nothing is learnt.
    """

    def __init__(self, normaliser: Normaliser) -> None:
        super().__init__()
        self.normaliser = normaliser

    def forward(self, planes: Tensor) -> Tensor:
        """Values 0 to 255 of any dtype, since augmentations may have made floats of them."""
        found: Tensor = self.normaliser(planes.float() - _CENTRE)
        return found


class ShardDataset(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of one shard, or of several in lock-step: planes (B, C, h, w) uint8, of a group
    (B, g·C, h, w), and labels (B,) int64, on `device`.

    It reads with threads of its own (FFCV's), so it is iterated as it is: no DataLoader is needed.
    Each pass is an epoch; with `shuffle`, by default of train alone, its order is drawn from (seed,
    epoch). `drop_last`, by default as `shuffle`: leave out a last partial batch. Of several
    processes each is given its `rank` of `world_size`, and reads its share of the samples.
    """

    def __init__(
        self, directory: str | Path, shard: int | str, split: str = "train", *, batch_size: int,
        shuffle: bool | None = None, drop_last: bool | None = None, seed: int = 0,
        device: str | torch.device = "cpu", rank: int = 0, world_size: int = 1, threads: int = 0,
    ) -> None:  # fmt: skip
        path = Path(directory)
        data = Prepared(path, manifest.load(path))
        found = parse_shards(str(shard), data.manifest.preparation.splits)
        if len(found) != 1:
            raise ConfigError(f"shard {shard}: one shard (7), or several together (0+1+2+3)")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} of world_size {world_size}: from 0 to one below it")
        if not data.manifest.counts.get(split, {}).get("written"):
            known = ", ".join(name for name in data.manifest.counts if data.manifest.written(name))
            raise ConfigError(f"{path} has no images in split {split!r}; there are {known}")
        self._loader = open_split(
            data, split, found[0], batch_size=batch_size, device=torch.device(device),
            threads=threads,
        )  # fmt: skip
        channels, height, width = data.manifest.preparation.input_shape
        self.shape = (len(found[0]) * channels, height, width)
        self.classes = data.manifest.classes
        self.samples = self._loader.samples
        self.normalise = Normalise(Normaliser(data.manifest, found[0])).to(device)
        self.shuffle = split == "train" if shuffle is None else shuffle
        self.drop_last = self.shuffle if drop_last is None else drop_last
        self.seed, self.epoch, self.batch_size = seed, 0, batch_size
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """Batches of a pass."""
        count = len(range(self._rank, self._all(), self._world_size))
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is this epoch: to go on after an interruption."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch. A batch stays as it is when the next one has come."""
        if get_worker_info() is not None:
            raise ConfigError(
                "a ShardDataset reads with threads of its own: iterate it as it is, or by "
                "DataLoader(dataset, batch_size=None, num_workers=0)"
            )
        order = self._order()
        self.epoch += 1
        with closing(self._loader.batches(order)) as batches:
            for values, labels in batches:
                yield (values.view(torch.uint8) ^ _CENTRE).flatten(1, -3), labels.clone()

    def _all(self) -> int:
        """Samples of all processes; each has as many where partial batches are left out."""
        samples = self._loader.samples
        return samples // self._world_size * self._world_size if self.drop_last else samples

    def _order(self) -> NDArray[np.int64]:
        order = np.arange(self._loader.samples)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        order = order[: self._all()][self._rank :: self._world_size]
        return np.ascontiguousarray(order[: len(self) * self.batch_size])
