"""What a run added up in; the manifest, with the statistics of each plane, out."""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.format.manifest import Manifest, Plane, shard_name
from pipeline.planes.resize import FILTER
from pipeline.planes.splitter import Splitter
from pipeline.stage.run import Run
from pipeline.stage.worker import ERROR_UNIT


def conclude(run: Run, layout: str, versions: dict[str, str]) -> Manifest:
    """The manifest of a run that has written everything."""
    prep, summary, tally = run.prep, run.index.summary, run.tally
    splitter = Splitter(prep) if prep.splits > 1 else None
    return Manifest(
        preparation=prep,
        tool_version=__version__,
        versions=versions,
        source=str(run.index.root.resolve()),
        layout=layout,
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
        planes=[_plane(run, k, splitter) for k in range(prep.splits)],
        files={
            name: {"size": entry["size"], "digest": entry["digest"]}
            for name, entry in sorted(run.files.items())
        },
    )


def _plane(run: Run, k: int, splitter: Splitter | None) -> Plane:
    prep, tally = run.prep, run.tally
    step = float(splitter.steps[k]) if splitter else 1.0
    offset = splitter.offsets[k] if splitter else np.zeros(prep.channels)
    colour = splitter.colour if splitter else np.eye(prep.channels)
    train = tally.train if tally.train.pixels else tally.rest  # of val, where there is no train
    mean, std = unrotated_moments(
        train.pixels, train.first[k], train.second[k], step, offset, colour
    )
    values = max(1, (tally.train.pixels + tally.rest.pixels) * prep.channels)
    names = [shard_name(split, k) for split in tally.counts]
    payload = sum(int(run.files[name]["payload_bytes"]) for name in names if name in run.files)
    return Plane(
        k=k,
        step=step,
        offset=offset.tolist(),
        clipped=int(tally.train.clipped[k] + tally.rest.clipped[k]) / values,
        mean=mean,
        std=std,
        bytes_per_sample=payload / tally.written,
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
