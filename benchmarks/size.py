"""Bytes and quality of planes by p, transform and step, on a folder of photographs.

    python benchmarks/size.py SOURCE [--every 1]

For each (p, transform): the largest step in half units that keeps 40 dB pooled, with PSNR and
bytes a sample and plane there. `pipeline.transforms` takes its default steps from this table.
"""

import argparse
import math
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import threadpoolctl
from common import images, report

from pipeline.codec import Payloads, encoder
from pipeline.imaging import load
from pipeline.options import preparation
from pipeline.splitter import Splitter
from pipeline.transforms import TRANSFORMS

SIZES = {2: 224, 3: 336, 4: 224, 5: 335, 6: 336, 7: 336, 8: 336}
TARGET_DB = 40.0
STEPS = [step / 2 for step in range(28, 11, -1)]


def measure(paths: list[Path], p: int, transform: str, step: float) -> tuple[float, float]:
    """Pooled PSNR in dB, and bytes a sample and plane."""
    prep = preparation("photos", p * p, size=SIZES[p], transform=transform, step=step)
    splitter, encode = Splitter(prep), encoder(prep)
    planes, clipped = splitter.empty(), np.zeros(prep.splits, np.int64)
    squares, values, payloads = 0.0, 0, Payloads(prep.splits)
    for path in paths:
        pixels, _ = load(path.read_bytes(), prep)
        splitter.split(pixels, planes, clipped)
        error = splitter.rebuild(planes).astype(np.float64) - pixels
        squares += float((error * error).sum())
        values += error.size
        encode(planes, payloads)
    return 10 * math.log10(255**2 * values / squares), payloads.total / len(paths) / prep.splits


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


def main() -> None:
    """Measure all pairs, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--every", type=int, default=1, help="use every so-many-th image")
    args = parser.parse_args()
    paths = images(args.source)[:: args.every]
    tasks = [(paths, p, transform) for p in SIZES for transform in TRANSFORMS]
    with get_context("spawn").Pool(2) as pool:
        rows = pool.map(best, tasks, chunksize=1)
    report("size", images=len(paths), codec="zstd", rows=rows)


if __name__ == "__main__":
    main()
