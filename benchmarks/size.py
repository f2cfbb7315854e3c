"""Bytes and quality of planes by p, transform and step, on a folder of photographs.

    python benchmarks/size.py SOURCE [--every 1] [--png FILE]

For each (p, transform): the largest step in half units that keeps 40 dB pooled, with PSNR and
bytes a sample and plane there. `pipeline.transforms` takes its default steps from this table.
With --png: a picture of bytes against PSNR over several steps instead.
"""

import argparse
import math
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import threadpoolctl
from common import images, report

from pipeline.choices import TRANSFORMS
from pipeline.format.codec import Payloads, encoder
from pipeline.planes.imaging import load, packed, pixels
from pipeline.planes.splitter import Splitter
from pipeline.preparation import preparation

SIZES = {2: 224, 3: 336, 4: 224, 5: 335, 6: 336, 7: 336, 8: 336}
TARGET_DB = 40.0
STEPS = [step / 2 for step in range(28, 11, -1)]
DRAWN_P = (2, 4, 6)
DRAWN_STEPS = (7.0, 8.5, 10.5, 13.0, 16.0)
COLOURS = {"dct": "#2166ac", "dct2": "#b2182b", "none": "#4d4d4d"}
BESIDE = {"dct": (-3, 6), "dct2": (-3, -12), "none": (-3, 6)}  # of each point, in pt


def measure(paths: list[Path], p: int, transform: str, step: float) -> tuple[float, float]:
    """Pooled PSNR in dB, and bytes a sample and plane."""
    prep = preparation("photos", p * p, size=SIZES[p], transform=transform, step=step)
    splitter, encode = Splitter(prep), encoder(prep)
    planes, clipped = splitter.empty(), np.zeros(prep.splits, np.int64)
    squares, values, payloads = 0.0, 0, Payloads(prep.splits)
    for path in paths:
        image, _ = load(path.read_bytes(), prep)
        splitter.split(packed(image), planes, clipped)
        error = splitter.rebuild(planes).astype(np.float64) - pixels(image)
        squares += float((error * error).sum())
        values += error.size
        encode(planes, payloads)
    payload_bytes = int(payloads.ends.sum())
    return 10 * math.log10(255**2 * values / squares), payload_bytes / len(paths) / prep.splits


def best(task: tuple[list[Path], int, str]) -> dict[str, object]:
    """The largest step that keeps the target."""
    paths, p, transform = task
    threadpoolctl.threadpool_limits(1)
    for step in STEPS:
        psnr, size = measure(paths, p, transform, step)
        if psnr >= TARGET_DB:
            return {"p": p, "transform": transform, "px": SIZES[p], "step": step,
                    "psnr_db": round(psnr, 2), "bytes": round(size)}  # fmt: skip
    raise SystemExit(f"no step keeps {TARGET_DB} dB at p={p}, {transform}")


def curve(task: tuple[list[Path], int, str]) -> list[tuple[float, float]]:
    """(PSNR, bytes) at each of `DRAWN_STEPS`."""
    paths, p, transform = task
    threadpoolctl.threadpool_limits(1)
    return [measure(paths, p, transform, step) for step in DRAWN_STEPS]


def draw(curves: dict[tuple[int, str], list[tuple[float, float]]], images: int, to: Path) -> None:
    """One panel per p, one line per transform, the step beside each point."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(DRAWN_P), figsize=(12, 4.2), sharex=True)
    for axis, p in zip(axes, DRAWN_P, strict=True):
        for transform in TRANSFORMS:
            points = curves[p, transform]
            axis.plot(*zip(*points, strict=True), "o-", ms=4, lw=1.5,
                      color=COLOURS[transform], label=transform)  # fmt: skip
            for step, point in zip(DRAWN_STEPS, points, strict=True):
                axis.annotate(f"{step:g}", point, BESIDE[transform], textcoords="offset points",
                              fontsize=7, ha="center", color=COLOURS[transform])  # fmt: skip
        axis.axvline(TARGET_DB, color="0.6", lw=1, ls="--")
        axis.set_title(f"p = {p}, {SIZES[p]} px to {SIZES[p] // p} px", fontsize=10)
        axis.set_xlabel("PSNR, pooled (dB)")
        axis.set_ylim(0, 1.08 * max(size for _, size in curves[p, "none"]))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("bytes a sample and plane")
    axes[0].legend(frameon=False, title="transform", loc="lower right")
    figure.suptitle(f"{images} photographs; the step stands beside each point", fontsize=11)
    figure.tight_layout()
    figure.savefig(to, dpi=150)


def main() -> None:
    """Measure all pairs, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--every", type=int, default=1, help="use every so-many-th image")
    parser.add_argument("--png", type=Path, help="draw a picture instead")
    args = parser.parse_args()
    paths = images(args.source)[:: args.every]
    if args.png:
        drawn = [(paths, p, transform) for p in DRAWN_P for transform in TRANSFORMS]
        with get_context("spawn").Pool(2) as pool:
            curves = pool.map(curve, drawn, chunksize=1)
        draw({task[1:]: points for task, points in zip(drawn, curves, strict=True)},
             len(paths), args.png)  # fmt: skip
        return
    tasks = [(paths, p, transform) for p in SIZES for transform in TRANSFORMS]
    with get_context("spawn").Pool(2) as pool:
        rows = pool.map(best, tasks, chunksize=1)
    report("size", images=len(paths), codec="zstd", rows=rows)


if __name__ == "__main__":
    main()
