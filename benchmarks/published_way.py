"""`prepare` sub36 against the way of the paper: a batch through torch, one JPEG file per plane.

    python benchmarks/published_way.py SOURCE [--copies 5] [--runs 3]

The published way: Pillow decodes and squashes to 336 px, torch computes the unnormalised DCT-II
(2·Σ) over the 36 phases of a batch in float32, each plane is shifted and scaled to 0…255 and
written as a JPEG file of quality 90 (4:2:0): 36 files an image. How the paper scales is not
documented, so its rate and sizes are those of the kinder choice, `stretched`: every plane of every
image to its own range, which is needed to undo it and counted nowhere. `fixed` is one range per
plane, what the transform can reach at most. Two processes on both sides. The time of `prepare` is
that of its whole run (start of its processes, syncs); theirs runs in processes that have torch,
and syncs nothing. PSNR in dB is pooled over all pixels of the images of SOURCE.
"""

import argparse
import math
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from common import images, linked, prepare_quietly, report, settled_seconds

from pipeline.planes.imaging import load, packed, pixels
from pipeline.planes.splitter import Splitter
from pipeline.preparation import preparation

SPLITS, SIZE, WORKERS = 36, 336, 2


def theirs(source: Path, pool: ProcessPoolExecutor) -> tuple[float, dict[str, int]]:
    """Seconds, and what `disk` says."""
    from published import write

    paths = images(source)
    parts = [paths[i::WORKERS] for i in range(WORKERS)]
    with tempfile.TemporaryDirectory() as out:
        for k in range(SPLITS):
            (Path(out) / f"shard_{k:02d}").mkdir()
        took = settled_seconds(lambda: list(pool.map(write, parts, [Path(out)] * WORKERS)))
        return took, disk(Path(out))


def ours(source: Path) -> tuple[float, dict[str, int]]:
    """Seconds, and what `disk` says."""
    prep = preparation("photos", SPLITS, size=SIZE)
    with tempfile.TemporaryDirectory() as out:
        took = settled_seconds(lambda: prepare_quietly(prep, source, Path(out), WORKERS))
        return took, disk(Path(out))


def disk(folder: Path) -> dict[str, int]:
    """Number of files, their bytes, and those of the file-system blocks that they fill."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return {
        "files": len(found),
        "bytes": sum(stat.st_size for stat in found),
        "blocks": sum(stat.st_blocks * 512 for stat in found),
    }


def our_quality(path: Path, splitter: Splitter) -> float:
    """Sum of squared errors of one image rebuilt from its quantised planes."""
    image, _ = load(path.read_bytes(), splitter.prep)
    planes = splitter.empty()
    splitter.split(packed(image), planes, np.zeros(SPLITS, np.int64))
    error = splitter.rebuild(planes).astype(np.float64) - pixels(image)
    return float((error * error).sum())


def psnr(squares: list[float]) -> float:
    """Pooled, in dB."""
    mean = sum(squares) / (len(squares) * SIZE * SIZE * 3)
    return round(10 * math.log10(255**2 / mean), 2)


def quality(paths: list[Path]) -> dict[str, float]:
    """Pooled PSNR of both, and the bytes a sample and plane of both ways to scale."""
    from published import quality as their_quality

    splitter = Splitter(preparation("photos", SPLITS, size=SIZE))
    stretched, fixed = ([their_quality(path, kind) for path in paths] for kind in (False, True))
    planes = len(paths) * SPLITS
    return {
        "psnr_db": psnr([our_quality(path, splitter) for path in paths]),
        "stretched_psnr_db": psnr([squares for squares, _ in stretched]),
        "stretched_bytes_a_plane": round(sum(size for _, size in stretched) / planes),
        "fixed_psnr_db": psnr([squares for squares, _ in fixed]),
        "fixed_bytes_a_plane": round(sum(size for _, size in fixed) / planes),
    }


def main() -> None:
    """Pairs of runs, then ratios; then quality, which is not timed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with (
        linked(args.source, args.copies) as source,
        ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool,
    ):
        count = len(images(source))
        theirs(next(source.iterdir()), pool)  # both processes import torch here
        pairs = [(ours(source), theirs(source, pool)) for _ in range(args.runs)]
    (_, mine), (_, other) = pairs[0]
    planes = count * SPLITS
    report(
        "published_way", images=count, runs=args.runs, splits=SPLITS, px=SIZE, workers=WORKERS,
        images_per_s=round(statistics.median(count / took for (took, _), _ in pairs)),
        published_images_per_s=round(statistics.median(count / took for _, (took, _) in pairs)),
        ratio=round(statistics.median(b / a for (a, _), (b, _) in pairs), 2),
        files=mine["files"], published_files=other["files"],
        bytes_a_plane=round(mine["bytes"] / planes),
        published_bytes_a_plane=round(other["bytes"] / planes),
        bytes_a_plane_in_blocks=round(mine["blocks"] / planes),
        published_bytes_a_plane_in_blocks=round(other["blocks"] / planes),
        **quality(images(args.source)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
