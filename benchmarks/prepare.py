"""`prepare` sub36 against decode and resize alone, and two workers against one.

    python benchmarks/prepare.py SOURCE [--copies 40] [--runs 3]

The images of SOURCE are linked COPIES times, so that start-up counts for little. The four take
turns of a few seconds, each stopped meanwhile, so that all meet the same machine, whatever else it
does. Figures are images/s of the whole command over the time of its own turns; ratios are medians
over RUNS. What two processes that do nothing but decode and resize reach against one is what the
machine allows.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from common import images, linked, prepare_quietly, report, taking_turns

from pipeline.planes.imaging import load, packed
from pipeline.preparation import Preparation, preparation

SPLITS = 36
TURNS = {("prepare", 2): 5.0, ("floor", 2): 3.0, ("prepare", 1): 10.0, ("floor", 1): 6.0}  # s


def decode_and_resize(paths: list[Path], prep: Preparation) -> int:
    """What nobody can do without: bytes to pixels of the right size."""
    for path in paths:
        packed(load(path.read_bytes(), prep)[0])
    return len(paths)


def floor(source: Path, prep: Preparation, workers: int) -> None:
    """decode_and_resize by `workers` processes."""
    paths = images(source)
    parts = [paths[i::workers] for i in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(decode_and_resize, parts, [prep] * workers))


def run(source: Path, prep: Preparation, workers: int) -> None:
    """The command, into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as out:
        prepare_quietly(prep, source, Path(out), workers)


def all_four(source: Path, count: int) -> list[float]:
    """Images/s of each of TURNS."""
    base = [sys.executable, __file__, str(source)]
    commands = [[*base, "--only", what, "--workers", str(n)] for what, n in TURNS]
    os.sync()
    return [count / took for took in taking_turns(commands, list(TURNS.values()))]


def main() -> None:
    """Runs of all four, then ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["prepare", "floor"], help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    prep = preparation("photos", SPLITS, size=336)
    if args.only:
        {"prepare": run, "floor": floor}[args.only](args.source, prep, args.workers)
        return
    with linked(args.source, args.copies) as source:
        count = len(images(source))
        rates = [all_four(source, count) for _ in range(args.runs)]

    def median(figure: Callable[[float, float, float, float], float]) -> float:
        return statistics.median(figure(*row) for row in rates)

    report(
        "prepare", images=count, runs=args.runs, splits=SPLITS,
        images_per_s=round(median(lambda two, *_: two)),
        decode_resize_images_per_s=round(median(lambda two, bare, *_: bare)),
        share_of_decode_resize=round(median(lambda two, bare, *_: two / bare), 3),
        share_with_one_worker=round(median(lambda two, bare, one, bare1: one / bare1), 3),
        two_workers_against_one=round(median(lambda two, bare, one, bare1: two / one), 3),
        two_decoders_against_one=round(median(lambda two, bare, one, bare1: bare / bare1), 3),
    )  # fmt: skip


if __name__ == "__main__":
    main()
