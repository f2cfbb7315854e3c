"""What a run adds up, and the manifest with the statistics of each plane that is made from it."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.format.beton_writer import Written
from pipeline.format.manifest import Manifest, Plane, shard_name
from pipeline.planes.imaging import FILTER
from pipeline.planes.splitter import Splitter
from pipeline.preparation import Preparation
from pipeline.sources.index import SPLITS, Index
from pipeline.stage.messages import ERROR_UNIT, Chunk, Errors, Moments

SHOWN_BAD = 20


@dataclass(frozen=True)
class Tally:
    """Counts and sums over the first `rows` rows of an index. other: of all but train. first_bad:
    (id, reason) of the first few images that cannot be used.
    """

    rows: int
    counts: dict[str, dict[str, int]]
    train: Moments
    other: Moments
    errors: Errors
    first_bad: tuple[tuple[str, str], ...] = ()

    @classmethod
    def zero(cls, prep: Preparation) -> Self:
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

    def plus(self, chunk: Chunk, splits: list[str], bad: list[tuple[str, str]]) -> "Tally":
        """With a chunk; splits: of its samples; bad: (id, reason) of those that have one."""
        counts = {split: dict(count) for split, count in self.counts.items()}
        for split, reason in zip(splits, chunk.reasons, strict=True):
            counts[split]["indexed"] += 1
            counts[split]["written" if reason is None else "quarantined"] += 1
        return Tally(
            self.rows + len(splits),
            counts,
            self.train + chunk.train,
            self.other + chunk.other,
            self.errors + chunk.errors,
            (*self.first_bad, *bad)[:SHOWN_BAD],
        )

    def joined(self, other: "Tally") -> "Tally":
        """With that of the rows that follow."""
        counts = {
            split: {key: count + other.counts[split][key] for key, count in own.items()}
            for split, own in self.counts.items()
        }
        return Tally(
            self.rows + other.rows,
            counts,
            self.train + other.train,
            self.other + other.other,
            self.errors + other.errors,
            (*self.first_bad, *other.first_bad)[:SHOWN_BAD],
        )

    def to_json(self) -> dict[str, Any]:
        """Numbers, lists and dictionaries."""
        sums = {name: getattr(self, name).to_json() for name in ("train", "other", "errors")}
        return {**vars(self), **sums}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            content["rows"],
            content["counts"],
            Moments.from_json(content["train"]),
            Moments.from_json(content["other"]),
            Errors.from_json(content["errors"]),
            tuple((sample, reason) for sample, reason in content["first_bad"]),
        )


@dataclass(frozen=True)
class Result:
    """What a run has written: shards and table, by their paths in the directory."""

    tally: Tally
    files: dict[str, Written]


def conclude(
    prep: Preparation, index: Index, result: Result, source_layout: str, versions: dict[str, str]
) -> Manifest:
    """The manifest of a run that has written everything."""
    summary, tally = index.summary, result.tally
    splitter = Splitter(prep) if prep.splits > 1 else None
    return Manifest(
        preparation=prep,
        tool_version=__version__,
        versions=versions,
        source=str(index.root.resolve()),
        source_layout=source_layout,
        fingerprint=summary.fingerprint,
        origin=summary.origin,
        resize_filter=FILTER.name.lower(),
        classes=summary.classes,
        class_names=summary.names,
        counts=tally.counts,
        psnr_db=psnr(tally.errors.image, tally.errors.values),
        psnr_images=tally.errors.samples,
        colour=splitter.colour.tolist() if splitter else np.eye(prep.channels).tolist(),
        matrix=splitter.matrix.tolist() if splitter else [[1.0]],
        planes=[_plane(prep, result, k, splitter) for k in range(prep.splits)],
        files={
            name: {"size": file.size, "digest": file.digest}
            for name, file in sorted(result.files.items())
        },
    )


def _plane(prep: Preparation, result: Result, k: int, splitter: Splitter | None) -> Plane:
    tally = result.tally
    step = float(splitter.steps[k]) if splitter else 1.0
    offset = splitter.offsets[k] if splitter else np.zeros(prep.channels)
    colour = splitter.colour if splitter else np.eye(prep.channels)
    train = tally.train if tally.train.pixels else tally.other  # of val, where there is no train
    mean, std = unrotated_moments(
        train.pixels, train.first[k], train.second[k], step, offset, colour
    )
    values = max(1, (tally.train.pixels + tally.other.pixels) * prep.channels)
    shards = (result.files.get(shard_name(split, k)) for split in tally.counts)
    return Plane(
        k=k,
        step=step,
        offset=offset.tolist(),
        clipped=int(tally.train.clipped[k] + tally.other.clipped[k]) / values,
        mean=mean,
        std=std,
        bytes_per_sample=sum(shard.payload_bytes for shard in shards if shard) / tally.written,
        psnr_db=psnr(int(tally.errors.planes[k]), tally.errors.values // prep.splits),
    )


def unrotated_moments(
    pixels: int,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    step: float,
    offset: NDArray[np.float64],
    colour: NDArray[np.float64],
) -> tuple[list[float], list[float]]:
    """Mean and deviation per RGB channel in grey levels, from sums over one plane's integers.

    first: (C,), second: (C, C); value = step·q + offset per rotated channel, rgb = Rᵀ·value.
    """
    if not pixels:
        return [0.0] * len(first), [1.0] * len(first)
    mean = first / pixels
    covariance = second / pixels - np.outer(mean, mean)
    rgb_mean = colour.T @ (step * mean + offset)
    rgb_variance = np.diag(colour.T @ covariance @ colour) * step**2
    return rgb_mean.tolist(), np.sqrt(np.maximum(rgb_variance, 0.0)).tolist()


def psnr(squares: int, values: int) -> float | None:
    """Peak signal-to-noise ratio in dB of a sum of squared errors over `values` values, peak
    255: pooled, one mean over all of them. None without values or without error.

    squares: in units of 1/ERROR_UNIT squared grey levels.
    """
    if not values or not squares:
        return None
    return 10 * math.log10(255.0**2 * values * ERROR_UNIT / squares)
