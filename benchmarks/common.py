"""What every benchmark prints: one JSON line, with the machine it ran on."""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def images(source: Path) -> list[Path]:
    """All files below `source`, in order."""
    return sorted(path for path in source.rglob("*") if path.is_file())
