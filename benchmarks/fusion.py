"""The fused classifier at ImageNet-21K's size: peak memory and time of `spectral ensemble`.

    python benchmarks/fusion.py WORK [--classes 10450] [--splits 36] [--samples 20000]
        [--limit 4000000000]

Images of noise in as many classes, small networks with first weights (what is measured does not
depend on what they know), `spectral ensemble` in a control group with so many bytes: the peak of
its memory, seconds, and what keeping all logits would have taken.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import prepare_quietly, report
from PIL import Image

from pipeline.format import manifest
from pipeline.preparation import preparation
from trainer.data.selection import Prepared

SIDE = 16  # px of a plane
RECIPE = {"model": "cifar-resnet8", "epochs": 1, "batch_size": 128, "model_args": {"width": 8}}


def write_images(root: Path, classes: int, samples: int) -> Path:
    """Two images a class for train, and `samples` for val, of 16 px of noise in grey."""
    if (root / "val").exists():
        return root
    rng = np.random.default_rng(0)
    for split, count in (("train", 2 * classes), ("val", samples)):
        for number in range(count):
            folder = root / split / f"n{number % classes:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=60)
    return root


def write_runs(runs: Path, data: Prepared) -> Path:
    """A finished run for each plane, its network as it was born."""
    from trainer.recipes.recipe import Recipe, build
    from trainer.record.rundir import RunDir, group_directory
    from trainer.record.weights import save_weights
    from trainer.run.network import build_network

    group = group_directory(runs, data, "born")
    for k in range(data.manifest.preparation.splits):
        run = RunDir.of(group, k)
        if run.result is not None:
            continue
        recipe = build(Recipe, RECIPE | {"seed": k})
        run.path.mkdir(parents=True, exist_ok=True)
        run.start(recipe, data, (k,), None)
        save_weights(run.best, build_network(recipe, data.manifest).state_dict(), {})
        run.finish({"epochs": 0, "steps": 0, "train_seconds": 0.0})
    return group


def confined(command: list[str], limit: int) -> tuple[float, int, int]:
    """Seconds of a command in a control group of `limit` bytes; the peak of the group in bytes,
    page cache included, and of what is resident in its process.
    """
    root = Path("/sys/fs/cgroup")
    old = (root / "memory").is_dir()
    group = (root / "memory" if old else root) / f"spectral-{os.getpid()}"
    group.mkdir()
    names = ("memory.limit_in_bytes", "memory.max_usage_in_bytes") if old else (
        "memory.max", "memory.peak")  # fmt: skip
    try:
        (group / names[0]).write_text(str(limit))
        start = time.perf_counter()

        def enter() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        process = subprocess.Popen(command, preexec_fn=enter, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"{' '.join(command)} failed: {os.waitstatus_to_exitcode(status)}")
        return seconds, int((group / names[1]).read_text()), 1024 * usage.ru_maxrss
    finally:
        group.rmdir()


def main() -> None:
    """Build what is missing in WORK, and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--classes", type=int, default=10_450)
    parser.add_argument("--splits", type=int, default=36)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--limit", type=int, default=4_000_000_000)
    options = parser.parse_args()
    work = options.work.absolute()
    source = write_images(work / "images", options.classes, options.samples)
    side = SIDE * round(options.splits**0.5)
    prep = preparation("noise", options.splits, size=side, calib=0.2)
    directory = work / "data" / "noise" / prep.folder()
    if not (directory / manifest.NAME).exists():
        prepare_quietly(prep, source, work / "data", len(os.sched_getaffinity(0)))
    data = Prepared(directory, manifest.load(directory))
    group = write_runs(work / "runs", data)
    command = [sys.executable, "-m", "cli", "ensemble", "--data", str(directory), "--runs",
               str(work / "runs"), "--json"]  # fmt: skip
    seconds, peak, resident = confined(command, options.limit)
    result: dict[str, Any] = json.loads((group / "ensemble.json").read_text())
    report(
        "fusion",
        networks=len(result["networks"]),
        classes=options.classes,
        samples=options.samples,
        fitted_samples=result["fitted_samples"],
        seconds=round(seconds, 1),
        samples_per_s=round(options.samples / seconds, 1),
        limit_gb=options.limit / 1e9,
        peak_gb_with_page_cache=round(peak / 1e9, 2),
        peak_resident_gb=round(resident / 1e9, 2),
        all_logits_gb=round(4e-9 * options.splits * options.classes * options.samples, 1),
    )


if __name__ == "__main__":
    main()
