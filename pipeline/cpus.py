"""How many cores this process may use: as many as it may run on, and as a container's quota allows.

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


def _quotas(root: Path, own: Path) -> list[float]:
    """Cores by each limit that holds: of the process' own group and of those around it."""
    found = []
    for group in {root / path.lstrip("/") for path in _groups(own)} | {root, root / "cpu"}:
        for folder in (group, *group.parents):
            if folder == root.parent:
                break
            found += [quota for quota in (_version_2(folder), _version_1(folder)) if quota]
    return found


def _groups(own: Path) -> list[str]:
    """`0::/user.slice/…` of version 2, `4:cpu,cpuacct:/docker/…` of version 1."""
    try:
        rows = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    paths = []
    for _, controllers, path in (row for row in rows if len(row) == 3):
        if not controllers:
            paths.append(path)
        elif "cpu" in controllers.split(","):
            paths += [f"cpu{path}", f"{controllers}{path}"]
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
    return int(first) if first.isdecimal() and int(first) > 0 else None
