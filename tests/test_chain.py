"""From images to the report by one command on a real Slurm, left alone and disturbed."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.slurm import Slurm, await_
from tests.test_cluster import SITE, TRAINED, Cluster
from tests.test_prepare import TOY, files_of

pytestmark = [pytest.mark.processes, pytest.mark.slurm, pytest.mark.chaos]
RUNS = Path("toy", "sub4-s32-calib0.2", "x")


def submitted(slurm: Slurm, home: Path, source: Path) -> tuple[Cluster, Path, str]:
    """`submit all`: its cluster, where the data go, and what it said."""
    (home / "runs").mkdir(parents=True)
    out = home / "data"
    cluster = Cluster(slurm, home / "runs", out / RUNS.parent)
    (home / "site.toml").write_text(SITE)
    command = (
        "submit", "all", "toy", "--source", source, *TOY, "--out", out, "--parts", 2,
        "--shard", "all", "--runs", cluster.home, "--name", "x", *TRAINED, "--set", "epochs=6",
        "--gpus", 0, "--site", home / "site.toml",
    )  # fmt: skip
    done = cluster.spectral(*command)
    assert done.returncode == 0, done.stderr
    return cluster, out, done.stdout


def pids(*words: str) -> list[int]:
    """Of our Python processes with all these words on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words) and not line.startswith("srun"):
            found.append(int(path.parent.name))
    return found


def awaited_job(slurm: Slurm, shard: int) -> str:
    """ARRAY_TASK of the training task of a shard, once it is at work."""
    found: list[str] = []

    def there() -> bool:
        lines = slurm.run("squeue", "-h", "-r", "-t", "R", "-o", "%F_%K %j").splitlines()
        found[:] = [
            x.split()[0] for x in lines if "train" in x and x.split()[0].endswith(f"_{shard}")
        ]
        return bool(found)

    assert await_(there, 200), slurm.run("squeue", "-o", "%i %j %T %r")
    return found[0]


def test_a_whole_chain_ends_the_same_though_all_that_can_happen_to_it_does(
    slurm: Slurm,
    many: Path,
    tmp_path: Path,
) -> None:
    """A part of the preparation and a training task are killed, another is requeued by hand, a
    third gets the warning of its time limit.
    """
    alone, alone_data, said = submitted(slurm, tmp_path / "alone", many)
    assert len(re.findall(r"^job \d+", said, re.M)) == 4, said
    assert await_(lambda: (alone.home / RUNS / "report.html").exists(), 500), slurm.log_tail()

    home = tmp_path / "disturbed"
    cluster, data, said = submitted(slurm, home, many)
    assert await_(lambda: bool(pids("spectral_shards.py prepare", "--part 1/2")), 200)
    for process in pids("spectral_shards.py prepare", "--part 1/2"):
        os.kill(process, signal.SIGKILL)

    assert await_(lambda: cluster.steps(0) > 20, 400), slurm.log_tail()
    for process in pids("spectral_shards.py worker", str(home), "shard_00"):
        os.kill(process, signal.SIGKILL)
    assert await_(lambda: cluster.steps(1) > 20, 200)
    slurm.run("scontrol", "requeue", awaited_job(slurm, 1))
    assert await_(lambda: cluster.steps(2) > 20, 200)
    slurm.run("scancel", "--signal=USR2", awaited_job(slurm, 2))
    assert await_(lambda: (cluster.home / RUNS / "report.html").exists(), 500), slurm.log_tail()

    (preparing,) = re.findall(r"^job (\d+): prepare", said, re.M)
    assert slurm.details(f"{preparing}_1")["Restarts"] == "1"
    starts = [
        (cluster.home / RUNS / f"shard_{k:02d}" / "log.jsonl").read_text().count('"kind": "start"')
        for k in range(4)
    ]
    assert [n > 1 for n in starts] == [True, True, True, False]
    assert files_of(alone_data) == files_of(data)
    for k in range(4):
        pair = [c.home / RUNS / f"shard_{k:02d}" / "best.safetensors" for c in (alone, cluster)]
        assert pair[0].read_bytes() == pair[1].read_bytes()
    figures = [json.loads((c.home / RUNS / "ensemble.json").read_text()) for c in (alone, cluster)]
    for found in figures:
        for row in found["networks"]:
            row["cost"].pop("hours")
        found["cost"] = None
    assert figures[0] == figures[1]
