"""What benchmarks share: the JSON line that each prints, the images they use, the command."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pipeline.manifest import Manifest
from pipeline.options import Preparation
from pipeline.prepare import prepare


def machine() -> str:
    """Processor model, usable cores and Python, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def report(name: str, **figures: Any) -> None:
    """Print the line."""
    print(json.dumps({"benchmark": name, "machine": machine(), **figures}))


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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
