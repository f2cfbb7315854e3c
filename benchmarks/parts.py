"""Where the time of one image goes in a worker of `prepare` sub36: CPU time of each part.

    python benchmarks/parts.py SOURCE [--rounds 20] [--transform dct2]

The parts take turns over 24 images of SOURCE, ROUNDS times; medians, and the least, which other
work on the machine disturbs least. `asarray` is what `packed` stands in for: the pixels copied.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import images, report

from pipeline.format.codec import Payloads, encoder
from pipeline.planes.imaging import load, packed, pixels
from pipeline.planes.kernels.moments import add_moments
from pipeline.planes.splitter import Splitter
from pipeline.preparation import preparation

SPLITS, SIZE, COUNT = 36, 336, 24


def parts(paths: list[Path], transform: str) -> dict[str, Callable[[], object]]:
    """Each part, as a function that does it for all images."""
    prep = preparation("photos", SPLITS, size=SIZE, transform=transform)
    splitter, encode, payloads = Splitter(prep), encoder(prep), Payloads(SPLITS)
    files = [path.read_bytes() for path in paths]
    loaded = [load(data, prep)[0] for data in files]
    lent = [packed(image) for image in loaded]
    made = [splitter.empty() for _ in lent]
    clipped, room = np.zeros(SPLITS, np.int64), np.zeros(COUNT << 17, np.uint8)
    sums = np.zeros((SPLITS, 3), np.int64), np.zeros((SPLITS, 3, 3), np.int64)

    def split_all() -> None:
        for image, planes in zip(lent, made, strict=True):
            splitter.split(image, planes, clipped)

    def encode_all() -> None:
        payloads.start(room)
        for planes in made:
            encode(planes, payloads)

    return {
        "load": lambda: [load(data, prep) for data in files],
        "packed": lambda: [packed(image) for image in loaded],
        "asarray": lambda: [pixels(image) for image in loaded],
        "split": split_all,
        "zstd": encode_all,
        "moments": lambda: [add_moments(p.reshape(SPLITS, 3, -1), *sums) for p in made],
    }


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU time an image."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / COUNT * 1e3


def main() -> None:
    """All parts in turn, ROUNDS times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--transform", default="dct2")
    args = parser.parse_args()
    found = images(args.source)
    each = parts(found[:: len(found) // COUNT][:COUNT], args.transform)
    for work in each.values():
        work()
    rounds = [{name: cpu_ms(work) for name, work in each.items()} for _ in range(args.rounds)]
    took = {name: [one[name] for one in rounds] for name in each}
    report(
        "parts", splits=SPLITS, px=SIZE, transform=args.transform, rounds=args.rounds,
        median_ms={name: round(statistics.median(all_), 3) for name, all_ in took.items()},
        least_ms={name: round(min(all_), 3) for name, all_ in took.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
