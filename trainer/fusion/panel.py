"""Asks all networks of a classifier about the samples of a split, batch by batch.

Samples outside, networks inside: the planes of a batch are read in lock-step, and what is held of
the answers is one block of (networks, samples, classes), however large the split. Networks that do
not fit into the device's memory together take turns on a block.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DamagedError
from trainer.data.crops import FIVE
from trainer.data.groups import open_split
from trainer.data.selection import Prepared
from trainer.fusion.members import Member
from trainer.process.device import free_memory
from trainer.run.evaluate import Predictor, padded_answers
from trainer.run.network import load_predictor, recipe_of

log = logging.getLogger(__name__)
_BATCH = 256  # samples that a network sees at a time, at most
_SHARE = 0.5  # of the device's free memory, for networks that stay
_BLOCK = 0.125  # of the host's free memory, for a block where they do not

Answers = tuple[Tensor, Tensor]  # logits (K, B, classes) float32, labels (B,) int64


class Panel:
    """The networks of `members` on a device, ready to be asked about the planes of one preparation.

    flip: each network sees the mirror image too, where that is exact on its planes.
    """

    def __init__(
        self, members: Sequence[Member], data: Prepared, device: torch.device, *, flip: bool = False
    ) -> None:
        self.members, self.device = members, device
        self.data, self.flip = data, flip
        self.planes = tuple(sorted({k for member in members for k in member.planes}))
        recipes = [recipe_of(member.run) for member in members]
        self._five_crops = all(recipe.test_crops == 2 * FIVE for recipe in recipes)
        most = min(_BATCH, *(recipe.batch_size for recipe in recipes))
        self.batch_size = max(1, most // FIVE) if self._five_crops else most

    @cached_property
    def _staying(self) -> list[Predictor] | None:
        """The networks, loaded; None where they do not fit together."""
        size = sum(member.run.best.stat().st_size for member in self.members)
        if size <= _SHARE * free_memory(self.device):
            return [self._load(member) for member in self.members]
        log.info("the networks take %.1f GB: they take turns in memory", size / 1e9)
        return None

    def answers(self, split: str, chosen: NDArray[np.int64] | None = None) -> Iterator[Answers]:
        """Of the samples of a split, or of some of them, in the order of the shards."""
        loader = open_split(
            self.data, split, self.planes, batch_size=self.batch_size, device=self.device,
            five_crops=self._five_crops,
        )  # fmt: skip
        order = np.arange(loader.samples) if chosen is None else chosen
        with closing(loader.batches(order)) as batches:
            if self._staying is not None:
                for values, labels in batches:
                    yield self._ask(values), labels.clone()
                return
            block: list[tuple[Tensor, Tensor]] = []
            most = self._block(len(order))
            for values, labels in batches:
                block.append((values.cpu().clone(), labels.clone()))
                if sum(len(truth) for _, truth in block) >= most:
                    yield self._in_turns(block)
                    block = []
            if block:
                yield self._in_turns(block)

    @torch.inference_mode()
    def _ask(self, values: Tensor) -> Tensor:
        """All networks that stay."""
        assert self._staying is not None
        pairs = zip(self._staying, self.members, strict=True)
        return torch.stack([self._one(predictor, m, values) for predictor, m in pairs])

    @torch.inference_mode()
    def _in_turns(self, block: list[tuple[Tensor, Tensor]]) -> Answers:
        """One network after the other, on all batches of a block."""
        found = []
        for member in self.members:
            predictor = self._load(member)
            each = [self._one(predictor, member, v.to(self.device)).cpu() for v, _ in block]
            found.append(torch.cat(each))
            del predictor
        return torch.stack(found), torch.cat([labels.cpu() for _, labels in block])

    def _one(self, predictor: Predictor, member: Member, values: Tensor) -> Tensor:
        """The answers of one network: its planes of those that are read."""
        logits = padded_answers(predictor, self._seen(member, values), self.batch_size)
        if not torch.isfinite(logits).all():
            raise DamagedError(f"{member.run.path}: its answers are not finite; train it again")
        return logits

    def _seen(self, member: Member, values: Tensor) -> Tensor:
        return values if len(self.planes) == 1 else planes_of(values, member.planes, self.planes)

    def _load(self, member: Member) -> Predictor:
        manifest = self.data.manifest
        return load_predictor(member.run, manifest, member.planes, self.device, flip=self.flip)

    def _block(self, samples: int) -> int:
        """How many samples a block has, so that planes and answers fit in a part of memory."""
        manifest = self.data.manifest
        planes = len(self.planes) * int(np.prod(manifest.preparation.input_shape))
        a_sample = planes + 2 * 4 * len(self.members) * len(manifest.classes)
        fits = int(_BLOCK * free_memory(torch.device("cpu"))) // a_sample
        return max(self.batch_size, min(samples, fits))


def planes_of(values: Tensor, wanted: tuple[int, ...], there: tuple[int, ...]) -> Tensor:
    """What one network sees of (B, g, C, h, w), the planes `there`: (B, C, h, w) of one plane,
    (B, m, C, h, w) of several.
    """
    places = [there.index(k) for k in wanted]
    if len(places) == 1:
        return values[:, places[0]]
    return values if wanted == there else values[:, places]
