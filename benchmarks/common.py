"""What benchmarks share: the JSON line that each prints, the images they use, the command."""

import json
import math
import os
import platform
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numba.core.registry import cpu_target
from PIL import Image

from pipeline.format.manifest import Manifest
from pipeline.preparation import Preparation, preparation
from pipeline.stage.prepare import prepare
from trainer.data.selection import Prepared


def machine() -> str:
    """Processor model, the instructions that kernels are compiled for, usable cores and Python, in
    words.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    cores, python = len(os.sched_getaffinity(0)), platform.python_version()
    return f"{model} ({instructions()}), {cores} cores, Python {python}"


def instructions() -> str:
    """The widest vector instructions that numba has compiled the kernels for, and which processor
    that is; NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may say less than there is.
    """
    _, processor, features = cpu_target.target_context.codegen().magic_tuple()
    sets = {"+avx512bw": "AVX-512", "+avx2": "AVX2"}
    found = [name for flag, name in sets.items() if flag in features.split(",")]
    return f"{found[0] if found else 'neither AVX2 nor AVX-512'}, {processor}"


def report(name: str, **figures: Any) -> None:
    """Print the line."""
    print(json.dumps({"benchmark": name, "machine": machine(), **figures}))


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def taking_turns(commands: list[list[str]], turns: list[float]) -> list[float]:
    """Seconds that each command takes, while they run in turns, `turns` seconds each, and are
    stopped in between. SystemExit if one fails.
    """
    running = [subprocess.Popen(command, start_new_session=True) for command in commands]
    took = [0.0] * len(running)
    try:
        for process in running:
            os.killpg(process.pid, signal.SIGSTOP)
        while any(process.returncode is None for process in running):
            for i, process in enumerate(running):
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGCONT)
                    start = time.perf_counter()
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(turns[i])
                    took[i] += time.perf_counter() - start
                    if process.returncode is None:
                        os.killpg(process.pid, signal.SIGSTOP)
                    elif process.returncode:
                        raise SystemExit(f"{' '.join(commands[i])} failed")
    finally:
        for process in running:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return took


def settled_seconds(work: Callable[[], object]) -> float:
    """`seconds`, once the disk has what ran before: a sync within `work` would wait for it."""
    os.sync()
    return seconds(work)


def images(source: Path) -> list[Path]:
    """All files below `source`, in order."""
    return sorted(path for path in source.rglob("*") if path.is_file())


@contextmanager
def linked(source: Path, copies: int) -> Iterator[Path]:
    """A folder with `copies` links to each image of `source`, in ten class folders."""
    with tempfile.TemporaryDirectory() as folder:
        for i, path in enumerate(images(source)):
            target = Path(folder) / f"class_{i % 10}"
            target.mkdir(exist_ok=True)
            for copy in range(copies):
                (target / f"{i:05d}-{copy}.jpg").symlink_to(path.resolve())
        yield Path(folder)


def prepare_quietly(
    prep: Preparation, source: Path, out: Path, workers: int
) -> tuple[Path, Manifest]:
    """The command `prepare` without its progress bar: (directory, manifest)."""
    done = prepare(
        prep, source, out, workers=workers, max_bad=None,
        progress=lambda what, total, unit: nullcontext(lambda count, note="": None),
    )  # fmt: skip
    return done.directory, done.manifest


def noise_images(root: Path, side: int, samples: int, classes: int = 10) -> Path:
    """`samples` JPEG files of smoothed noise in class folders below root/train; 100 differ."""
    rng = np.random.default_rng(0)
    for i in range(samples):
        folder = root / "train" / f"class_{i % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{i:06d}.jpg"
        if i >= 100:
            path.hardlink_to(root / "train" / f"class_{i % 100 % classes}" / f"{i % 100:06d}.jpg")
            continue
        small = Image.fromarray(rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


def noise_shards(
    root: Path, splits: int, plane: int, samples: int, classes: int = 10, calib: float = 0.0
) -> Prepared:
    """Shards of `plane`×`plane` px of smoothed noise, prepared below `root`."""
    side = math.isqrt(splits) * plane
    source = noise_images(root / "images", side, samples, classes)
    prep = preparation("noise", splits, size=side, calib=calib)
    workers = len(os.sched_getaffinity(0))
    directory, manifest = prepare_quietly(prep, source, root, workers)
    return Prepared(directory, manifest)
