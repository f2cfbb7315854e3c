"""`prepare` sub36 against decode and resize alone, and two workers against one.

    python benchmarks/prepare.py SOURCE [--copies 40] [--runs 3]

The images of SOURCE are linked COPIES times, so that start-up counts for little. Each figure is
images/s of the whole command; ratios are medians of pairs measured one after the other. What two
processes that do nothing but decode and resize reach against one is what the machine allows.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from common import images, linked, prepare_quietly, report, seconds

from pipeline.options import Preparation, preparation
from pipeline.planes.imaging import load

SPLITS = 36


def decode_and_resize(paths: list[Path], prep: Preparation) -> int:
    """What nobody can do without: bytes to pixels of the right size."""
    for path in paths:
        load(path.read_bytes(), prep)
    return len(paths)


def floor(paths: list[Path], prep: Preparation, workers: int) -> None:
    """decode_and_resize by `workers` processes."""
    parts = [paths[i::workers] for i in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(decode_and_resize, parts, [prep] * workers))


def run(source: Path, prep: Preparation, workers: int) -> None:
    """The command, into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as out:
        prepare_quietly(prep, source, Path(out), workers)


def main() -> None:
    """Pairs of runs, then ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    prep = preparation("photos", SPLITS, size=336)
    with linked(args.source, args.copies) as source:
        paths = images(source)
        rates = [
            [len(paths) / seconds(work) for work in (
                lambda: run(source, prep, 2), lambda: floor(paths, prep, 2),
                lambda: run(source, prep, 1), lambda: floor(paths, prep, 1))]
            for _ in range(args.runs)
        ]  # fmt: skip

    def median(figure: Callable[[float, float, float, float], float]) -> float:
        return statistics.median(figure(*row) for row in rates)

    report(
        "prepare", images=len(paths), splits=SPLITS,
        images_per_s=round(median(lambda two, *_: two)),
        decode_resize_images_per_s=round(median(lambda two, bare, *_: bare)),
        share_of_decode_resize=round(median(lambda two, bare, *_: two / bare), 3),
        share_with_one_worker=round(median(lambda two, bare, one, bare1: one / bare1), 3),
        two_workers_against_one=round(median(lambda two, bare, one, bare1: two / one), 3),
        two_decoders_against_one=round(median(lambda two, bare, one, bare1: bare / bare1), 3),
    )  # fmt: skip


if __name__ == "__main__":
    main()
