"""Several planes of the same images, read in lock-step: what one network on a group of planes sees.

Each shard has a loader of its own; all of them follow one order, so that a sample's planes meet
again in one batch. The cost of a step is nearly that of one plane: only the stem sees more
channels.
"""

from contextlib import ExitStack, closing

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamagedError
from pipeline.format.beton import BetonReader
from trainer.data.loader import Batches, ShardLoader
from trainer.data.selection import Prepared


class PlaneGroupLoader:
    """One split of the shards of planes `ks`: batches of (B, g, C, h, w) int8 and (B,) int64, valid
    until the next batch is asked for.
    """

    kind = "stream"

    def __init__(
        self, data: Prepared, split: str, ks: tuple[int, ...], *, batch_size: int,
        device: torch.device, threads: int = 0,
    ) -> None:  # fmt: skip
        if data.manifest.preparation.splits == 1 or len(set(ks)) < len(ks) or len(ks) < 2:
            raise ConfigError(f"planes {ks}: a group is of two planes or more, each once")
        self._loaders = [
            ShardLoader(data, split, k, batch_size=batch_size, device=device, threads=threads)
            for k in ks
        ]
        first = self._loaders[0]
        self.path, self.samples, self.device = first.path, first.samples, device
        self.batch_size, self.shape = first.batch_size, (len(ks), *first.shape)
        self._check_labels()

    def batches(self, order: NDArray[np.int64]) -> Batches:
        """The samples of `order`, in batches; the last one may be partial. Close the iterator,
        or use it up, before the next one.
        """
        with ExitStack() as opened:
            planes = [opened.enter_context(closing(loader.batches(order)))
                      for loader in self._loaders]  # fmt: skip
            for together in zip(*planes, strict=True):
                yield torch.stack([values for values, _ in together], dim=1), together[0][1]

    def _check_labels(self) -> None:
        """Shards of one preparation hold the same images in the same order."""
        expected = None
        for loader in self._loaders:
            with BetonReader(loader.path) as reader:
                labels = reader.labels.copy()
            if expected is None:
                expected = labels
            if not np.array_equal(labels, expected):
                raise DamagedError(
                    f"{loader.path} does not hold the samples of {self.path} in their order: "
                    "run `spectral verify`"
                )


def open_split(
    data: Prepared, split: str, ks: tuple[int, ...], *, batch_size: int, device: torch.device,
    random_crops: bool = False, five_crops: bool = False, threads: int = 0,
) -> ShardLoader | PlaneGroupLoader:  # fmt: skip
    """What reads one plane, or a group of them."""
    if len(ks) > 1:
        return PlaneGroupLoader(
            data, split, ks, batch_size=batch_size, device=device, threads=threads
        )
    return ShardLoader(
        data, split, ks[0], batch_size=batch_size, device=device,
        random_crops=random_crops, five_crops=five_crops, threads=threads,
    )  # fmt: skip
