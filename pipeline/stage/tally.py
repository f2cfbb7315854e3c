"""What a run adds up: counts, sums over pixels, and bad images; to and from JSON."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.preparation import Preparation
from pipeline.sources.index import SPLITS
from pipeline.stage.worker import Chunk, Errors, Moments

SHOWN_BAD = 20


@dataclass
class Tally:
    """Sums over the first `rows` rows of an index. `first_bad`: (id, reason) of the first few."""

    rows: int
    counts: dict[str, dict[str, int]]
    train: Moments
    rest: Moments
    errors: Errors
    first_bad: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def zero(cls, prep: Preparation) -> "Tally":
        """Before the first row."""
        counts = {split: {"indexed": 0, "written": 0, "quarantined": 0} for split in SPLITS}
        return cls(0, counts, Moments.zero(prep), Moments.zero(prep), Errors.zero(prep))

    @property
    def bad(self) -> int:
        """Images that cannot be used."""
        return sum(count["quarantined"] for count in self.counts.values())

    @property
    def written(self) -> int:
        """Images in the shards."""
        return sum(count["written"] for count in self.counts.values())

    def add(self, chunk: Chunk, splits: list[str]) -> None:
        """Take in a chunk; `splits` of its samples."""
        for split, reason in zip(splits, chunk.reasons, strict=True):
            count = self.counts[split]
            count["indexed"] += 1
            count["written" if reason is None else "quarantined"] += 1
        self.rows += len(splits)
        self.train.add(chunk.train)
        self.rest.add(chunk.rest)
        self.errors.add(chunk.errors)

    def to_json(self) -> dict[str, Any]:
        """Numbers, lists and dictionaries, which later additions do not change."""
        return {
            "rows": self.rows,
            "counts": {split: dict(count) for split, count in self.counts.items()},
            "train": _moments_to_json(self.train),
            "rest": _moments_to_json(self.rest),
            "errors": {**vars(self.errors), "planes": self.errors.planes.tolist()},
            "first_bad": list(self.first_bad),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tally":
        """The inverse of `to_json`."""
        errors = content["errors"]
        return cls(
            content["rows"],
            content["counts"],
            _moments_from_json(content["train"]),
            _moments_from_json(content["rest"]),
            Errors(**{**errors, "planes": np.array(errors["planes"], np.int64)}),
            [(sample, reason) for sample, reason in content["first_bad"]],
        )


def _moments_to_json(moments: Moments) -> list[Any]:
    arrays = (moments.first, moments.second, moments.clipped)
    return [moments.pixels, *(array.tolist() for array in arrays)]


def _moments_from_json(content: list[Any]) -> Moments:
    pixels, *arrays = content
    return Moments(pixels, *(np.array(array, np.int64) for array in arrays))
