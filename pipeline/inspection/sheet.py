"""Draws a contact sheet of a prepared directory: originals, rebuilt images, planes."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadImageError, SourceError
from pipeline.format import manifest
from pipeline.format.beton import BetonReader
from pipeline.format.codec import stored
from pipeline.format.manifest import Manifest
from pipeline.planes.imaging import load, pixels
from pipeline.planes.splitter import Splitter
from pipeline.sources.index import SPLITS, Container, Place
from pipeline.sources.reading import read_alone
from pipeline.stage import samples
from pipeline.stage.messages import ERROR_UNIT
from pipeline.stage.statistics import psnr

DIFFERENCE_GAIN = 16
PLANE_GAIN = 8  # of the planes other than 0, whose values are small


@dataclass(frozen=True)
class Row:
    """One sample: what the sheet shows of it. Pixels are (H, W, 3) uint8."""

    name: str
    rebuilt: NDArray[np.uint8]
    planes: NDArray[np.uint8] | None
    original: NDArray[np.uint8] | None


def draw(directory: Path, target: Path, count: int = 4) -> None:
    """Write the sheet of some samples, spread over the largest split; planes are plotted, too."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = manifest.load(directory)  # an error for a beton: a sheet needs all planes
    rows = _rows(directory, found, count)
    prep = found.preparation
    split = prep.splits > 1
    what = f"{prep.splits} planes, {prep.transform}" if split else f"whole images, {prep.codec}"
    heights = [2.8 * split, 3.3 * len(rows)]
    figure = plt.figure(figsize=(13, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(f"{prep.dataset} {directory.name}: {what}")
    if split:
        halves: Any = figure.subfigures(2, 1, height_ratios=heights)
        _plot_planes(halves[0], found)
        _draw_rows(halves[1], rows)
    else:
        _draw_rows(figure, rows)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in scripts the font lacks
        figure.savefig(target, dpi=110)
    plt.close(figure)


def _plot_planes(figure: Any, found: Manifest) -> None:
    """Energy, bytes and PSNR of each plane, k from left to right."""
    planes = found.planes
    k = [plane.k for plane in planes]
    variance = np.array([np.square(plane.std).sum() for plane in planes])
    stored = [plane.bytes_per_sample for plane in planes]
    kept = [plane.psnr_db if plane.psnr_db is not None else np.nan for plane in planes]
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots(1, 3)
    axes[0].bar(k, 100 * variance / variance.sum())
    axes[0].set(yscale="log", title="energy of train about the mean, % of all planes")
    axes[1].bar(k, stored)
    axes[1].axhline(np.mean(stored), color="black", linewidth=0.8)
    axes[1].set(title=f"bytes a sample, mean {np.mean(stored):,.0f}")
    axes[2].plot(k, kept, "o", markersize=4)
    title = "PSNR, dB" if found.psnr_db is None else f"PSNR, dB; pooled {found.psnr_db:.2f}"
    axes[2].set(title=title)
    for axis in axes:
        axis.set_xlabel("plane k")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.title.set_fontsize(9)
        axis.grid(axis="y", alpha=0.3)


def _draw_rows(figure: Any, rows: list[Row]) -> None:
    titles = [
        "original",
        "rebuilt",
        f"difference ×{DIFFERENCE_GAIN}",
        f"planes (k ≥ 1: ×{PLANE_GAIN})",
    ]
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, title, cell in zip(line, titles, _cells(row), strict=True):
            axis.set_axis_off()
            if cell is not None:
                axis.imshow(cell, interpolation="nearest")
                axis.set_title(title, fontsize=9)
        line[1].set_title(_rebuilt_title(row), fontsize=9)
        line[0].text(0, -0.03, row.name, transform=line[0].transAxes, fontsize=7, va="top")


def _cells(row: Row) -> list[NDArray[np.uint8] | None]:
    difference = None
    if row.original is not None:
        delta = row.rebuilt.astype(np.int32) - row.original
        difference = np.clip(128 + DIFFERENCE_GAIN * delta, 0, 255).astype(np.uint8)
    return [row.original, row.rebuilt, difference, row.planes]


def _rebuilt_title(row: Row) -> str:
    if row.original is None:
        return "rebuilt (the source is not there to compare)"
    delta = row.rebuilt.astype(np.float64) - row.original
    quality = psnr(int((delta * delta).sum()) * ERROR_UNIT, delta.size)
    return "rebuilt, " + ("exact" if quality is None else f"{quality:.1f} dB")


def _rows(directory: Path, found: Manifest, count: int) -> list[Row]:
    prep = found.preparation
    split = max(SPLITS, key=found.written)
    readers = [BetonReader(directory / found.shard(split, k)) for k in range(prep.splits)]
    chosen = np.linspace(0, readers[0].samples - 1, min(count, readers[0].samples)).astype(int)
    places = samples.places(directory, split, chosen.tolist())
    containers = samples.containers(directory)
    return [
        _row(found, readers, i, name, _original(found, place, containers))
        for i, (name, place) in zip(chosen.tolist(), places, strict=True)
    ]


def _row(
    found: Manifest,
    readers: list[BetonReader],
    i: int,
    name: str,
    original: NDArray[np.uint8] | None,
) -> Row:
    prep = found.preparation
    if prep.splits == 1:
        return Row(name, _rgb(stored(readers[0], i, prep)), None, original)
    splitter = Splitter(prep)
    planes = np.stack([stored(reader, i, prep) for reader in readers])
    return Row(name, _rgb(splitter.rebuild(planes)), _mosaic(splitter, planes), original)


def _original(
    found: Manifest, place: Place, containers: list[Container]
) -> NDArray[np.uint8] | None:
    """The source image, resized; None if the source has gone, or would have to be read again from
    its start.
    """
    try:
        data = read_alone(Path(found.source), containers, place)
        if data is None:
            return None
        image, _ = load(data, found.preparation, containers[place.file].shape)
        return _rgb(pixels(image))
    except (SourceError, OSError, BadImageError):
        return None


def _mosaic(splitter: Splitter, planes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """All planes, k row by row, in their own colours on mid grey, with thin lines between."""
    p, (channels, height, width) = splitter.prep.p, splitter.prep.plane_shape
    sheet = np.full((p * (height + 1), p * (width + 1), channels), 255, np.uint8)
    scaled: Any = planes * splitter.steps[:, None, None, None]
    rgb = np.einsum("kchw,cd->khwd", scaled, splitter.colour)
    phases = splitter.prep.transform == "none"
    for k, plane in enumerate(rgb):
        gain = 1.0 if phases else (1 if k == 0 else PLANE_GAIN) / p
        top, left = k // p * (height + 1), k % p * (width + 1)
        pixels = np.clip(127.5 + gain * plane, 0, 255).astype(np.uint8)
        sheet[top : top + height, left : left + width] = pixels
    return _rgb(sheet)


def _rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
