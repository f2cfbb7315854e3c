"""How many cores and how much memory this process may use: what the machine has, and what a
container's limits leave of it.

A container with a quota of two cores on a host of 128 may run on all of them, a sixty-fourth of the
time; threads beyond the quota only wait for each other.
"""

import os
from math import ceil
from pathlib import Path

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores(root: Path = _CGROUPS, own: Path = _OWN) -> int:
    """At least 1. root: where control groups are mounted; own: the file that names this process's
    groups.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, min([allowed, *(ceil(quota) for quota in _quotas(root, own))]))


def free_bytes(
    root: Path = _CGROUPS, own: Path = _OWN, machine: Path = Path("/proc/meminfo")
) -> int:
    """Memory that this process may still take, page cache not counted as taken."""
    rows = dict(line.split(":", 1) for line in machine.read_text().splitlines())
    available = 1024 * int(rows["MemAvailable"].split()[0])
    left = [_memory_left(folder) for folder in _folders("memory", root, own)]
    return max(0, min([available, *(found for found in left if found is not None)]))


def _memory_left(folder: Path) -> int | None:
    """What the limit of a group leaves; None where it has none."""
    for limit, used, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, taken = (int((folder / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return most - taken + int(stat.get(inactive, 0))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _quotas(root: Path, own: Path) -> list[float]:
    """Cores by each limit that holds."""
    folders = _folders("cpu", root, own)
    return [q for f in folders for q in (_version_2(f), _version_1(f)) if q]


def _folders(controller: str, root: Path, own: Path) -> list[Path]:
    """The process' own group and those around it."""
    found = []
    groups = {root / path.lstrip("/") for path in _groups(controller, own)}
    for group in groups | {root, root / controller}:
        for folder in (group, *group.parents):
            if folder == root.parent:
                break
            found.append(folder)
    return found


def _groups(controller: str, own: Path) -> list[str]:
    """`0::/user.slice/…` of version 2, `4:cpu,cpuacct:/docker/…` of version 1."""
    try:
        rows = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    paths = []
    for _, controllers, path in (row for row in rows if len(row) == 3):
        if not controllers:
            paths.append(path)
        elif controller in controllers.split(","):
            paths += [f"{controller}{path}", f"{controllers}{path}"]
    return paths


def _version_2(folder: Path) -> float | None:
    """`cpu.max`: microseconds of a period, or `max`, and the period."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _version_1(folder: Path) -> float | None:
    """-1: no limit."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def threads_asked_for(text: str | None) -> int | None:
    """The first number of OMP_NUM_THREADS, which may be a list, one a level of nesting; None where
    it is empty or says nothing that makes sense.
    """
    first = (text or "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdecimal() and int(first) > 0 else None
