"""Cores and memory: as much as the machine has and a container's limits allow."""

import os
from pathlib import Path

import pytest

from pipeline.limits import free_bytes, threads_asked_for, usable_cores

ALLOWED = len(os.sched_getaffinity(0))


def groups(tmp_path: Path, own: str, **files: str) -> tuple[Path, Path]:
    """A tree of control groups, and the file that names this process' own."""
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("-", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "own").write_text(own)
    return root, tmp_path / "own"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {}, ALLOWED),
        ("0::/\n", {"cpu-max": "max 100000\n"}, ALLOWED),
        ("0::/\n", {"cpu-max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu-max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu-max": f"{ALLOWED * 100000 + 1} 100000\n"}, ALLOWED),
        ("0::/a/b\n", {"a__b__cpu-max": "max 100000\n", "a__cpu-max": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"c__cpu-max": "100000 100000\n"}, ALLOWED),
        ("4:cpu,cpuacct:/d\n", {"cpu__d__cpu-cfs_quota_us": "100000",
                                "cpu__d__cpu-cfs_period_us": "100000"}, 1),
        ("4:cpu,cpuacct:/d\n", {"cpu__d__cpu-cfs_quota_us": "-1",
                                "cpu__d__cpu-cfs_period_us": "100000"}, ALLOWED),
        ("nonsense", {"cpu-max": "nonsense"}, ALLOWED),
    ],
)  # fmt: skip
def test_a_quota_limits_the_cores(
    tmp_path: Path, own: str, files: dict[str, str], cores: int
) -> None:
    """Of the process' own group, or of one around it; of either version of control groups."""
    assert usable_cores(*groups(tmp_path, own, **files)) == cores


def test_affinity_limits_the_cores(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores(*groups(tmp_path, "0::/\n")) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert usable_cores(tmp_path / "none", tmp_path / "none") == ALLOWED


@pytest.mark.parametrize(
    ("text", "threads"),
    [("4", 4), ("4,2", 4), (" 3 ", 3), ("", None), (None, None), ("0", None), ("many", None)],
)
def test_the_number_of_threads_may_be_a_list_or_nothing(text: str, threads: int | None) -> None:
    assert threads_asked_for(text) == threads


V2 = {"memory-max": "1000", "memory-current": "700", "memory-stat": "anon 5\ninactive_file 100\n"}
V1 = {
    "memory__d__memory-limit_in_bytes": "1000",
    "memory__d__memory-usage_in_bytes": "700",
    "memory__d__memory-stat": "total_inactive_file 100",
}


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/\n", {}, 4096),
        ("0::/\n", V2, 400),
        ("0::/\n", {**V2, "memory-max": "max"}, 4096),
        ("0::/a\n", {f"a__{name}": text for name, text in V2.items()}, 400),
        ("4:memory:/d\n", V1, 400),
        ("4:memory:/d\n", {**V1, "memory__d__memory-limit_in_bytes": str(2**63 - 4096)}, 4096),
        ("0::/\n", {**V2, "memory-current": "2000"}, 0),
    ],
)
def test_memory_of_a_group(tmp_path: Path, own: str, files: dict[str, str], left: int) -> None:
    root, mine = groups(tmp_path, own, **files)
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemAvailable: 4 kB\n")
    assert free_bytes(root, mine, tmp_path / "meminfo") == left
