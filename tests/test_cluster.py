"""Shards as tasks of a real Slurm: stops, kills, failures, crash loops, and what is submitted."""

import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.conftest import SUB4, Done, spectral, spectral_here
from tests.slurm import Slurm, await_
from tests.test_prepare import TOY, files_of
from trainer.cluster import script
from trainer.cluster import slurm as commands
from trainer.cluster.site import Site
from trainer.cluster.slurm import preempted
from trainer.record.weights import load_weights

pytestmark = [pytest.mark.processes, pytest.mark.slurm]

TRAINED = ("--recipe", "digits", "--save-every", "7", "--set", "epochs=40", "--set",
           "batch_size=16", "--set", "model_args.width=8", "--set", "augment.cutout=4")  # fmt: skip
SITE = """
[slurm]
cpus = 1
spread = 0
setup = ["export OMP_NUM_THREADS=1"]
"""
# Loaded by each Python that finds it on its path: the worker of a run is killed as it starts
CRASH = """
import os, sys
if "worker" in sys.orig_argv and os.environ["CRASHES"] in sys.orig_argv[-1]:
    os.kill(os.getpid(), 9)
"""


@dataclass
class Cluster:
    """Commands of ours on a Slurm; `home`: the folder of runs, and of the site's file."""

    slurm: Slurm
    home: Path
    data: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def site(self) -> Path:
        path = self.home / "site.toml"
        path.write_text(SITE)
        return path

    def spectral(self, *args: object) -> Done:
        return spectral_here(*args, SLURM_CONF=str(self.slurm.conf), **self.env)

    def submit(self, shards: str, *options: object, name: str = "x") -> str:
        """`spectral submit train`; what it says."""
        done = self.spectral(
            "submit", "train", "--shard", shards, "--data", self.data, "--runs", self.home,
            "--name", name, *TRAINED, "--gpus", 0, "--site", self.site, *options,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def job(self, *args: object, **more: str) -> str:
        """The number of the one job that was submitted."""
        (job,) = re.findall(r"^job (\d+):", self.submit(*args, **more), re.M)
        return job

    def run(self, shard: int, name: str = "x") -> Path:
        return self.home / "toy" / self.data.name / name / f"shard_{shard:02d}"

    def steps(self, shard: int, name: str = "x") -> int:
        path = self.run(shard, name) / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(x)["step"] for x in lines if x.endswith("}")), default=0)

    def status(self, shard: int, name: str = "x") -> dict[str, object]:
        return json.loads((self.run(shard, name) / "status.json").read_text())

    def standing(self, shard: int) -> dict[str, object]:
        """Its row of `spectral status`."""
        done = self.spectral("status", "--runs", self.home, "--json")
        assert done.returncode == 0, done.stderr
        return {row["shard"]: row for row in json.loads(done.stdout)}[str(shard)]

    def log(self, shard: int, name: str = "*") -> str:
        """What the batch scripts of a shard said."""
        return "".join(p.read_text() for p in self.home.glob(f"slurm/{name}/{shard}.log"))


def undisturbed(data: Path, runs: Path, shard: int, *options: object) -> None:
    """The same without Slurm, in a process of its own: as many threads, for the same rounding."""
    done = spectral("train", "--data", data, "--runs", runs, "--name", "x", *TRAINED, *options,
                    "--shard", shard, OMP_NUM_THREADS="1")  # fmt: skip
    assert done.returncode == 0, done.stderr


def assert_same_weights(one: Path, other: Path) -> None:
    found, expected = (load_weights(run / "best.safetensors").tensors for run in (one, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture
def cluster(slurm: Slurm, data: Path, tmp_path: Path) -> Cluster:
    return Cluster(slurm, tmp_path / "runs", _made(tmp_path / "runs") and data / SUB4)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def copied(data: Path, folder: Path) -> Path:
    """Prepared data that a test may damage."""
    subprocess.run(["cp", "-a", data, folder], check=True)
    return folder / data.name


def kill_worker(cluster: Cluster, shard: int) -> None:
    os.kill(int(str(cluster.status(shard)["pid"])), signal.SIGKILL)


def test_a_stopped_and_a_killed_task_go_on_and_others_fail_for_good(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    """Shard 0 is killed and shard 1 stopped in the middle of an epoch; the file of shard 2 is
    damaged, and shard 3 crashes whenever it starts.
    """
    cluster.data = copied(data / SUB4, tmp_path)
    shard = cluster.data / "train" / "shard_02.beton"
    shard.write_bytes(shard.read_bytes()[:-1])
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(CRASH)
    cluster.env = {"PYTHONPATH": str(tmp_path / "hook"), "CRASHES": "shard_03"}
    job = cluster.job("all", "--starts", 2)
    slurm = cluster.slurm
    assert await_(lambda: cluster.steps(0) > 20)
    kill_worker(cluster, 0)
    assert await_(lambda: cluster.standing(0)["state"] == "requeued")
    assert await_(lambda: cluster.steps(1) > 20)
    slurm.run("scancel", "--signal=USR2", f"{job}_1")
    again = cluster.submit("0-1")
    assert "job" not in re.findall(r"^\w+", again, re.M)
    assert again.count(f"in the queue already, job {job}_") == 2

    assert slurm.await_state(f"{job}_2", "FAILED", "COMPLETED") == "FAILED"
    assert slurm.details(f"{job}_2")["Restarts"] == "0"
    assert slurm.await_state(f"{job}_3", "FAILED", "COMPLETED") == "FAILED"
    assert slurm.details(f"{job}_3")["Restarts"] == "1"
    assert "shard_02.beton is truncated" in cluster.log(2)
    said = cluster.status(3)
    assert said["state"] == "failed"
    assert str(said["error"]).startswith(
        "given up after 2 starts that ended at step 0; the last one: killed by SIGKILL"
    )
    for k, how in ((0, "killed by SIGKILL"), (1, "stopped")):
        assert slurm.await_state(f"{job}_{k}", "COMPLETED", "FAILED") == "COMPLETED"
        assert slurm.details(f"{job}_{k}")["Restarts"] == "1"
        assert f"{how}" in cluster.log(k)
        undisturbed(cluster.data, tmp_path / "reference", k)
        expected = tmp_path / "reference" / cluster.run(k).relative_to(cluster.home)
        assert_same_weights(cluster.run(k), expected)
    left = cluster.submit("all", "--dry-run")
    assert left.count("already finished") == 2
    assert "#SBATCH --array=2-3\n" in left


def test_the_environment_does_not_change_what_slurm_is_asked(cluster: Cluster) -> None:
    """By a site, by a user, or by an interactive job in which the command is typed."""
    cluster.env = {"SBATCH_PARTITION": "urgent", "SBATCH_NO_REQUEUE": "1", "SBATCH_WAIT": "1",
                   "SLURM_NTASKS": "3", "SQUEUE_STATES": "RUNNING"}  # fmt: skip
    options = ("--partition", "main", "--at-once", 1, "--set", "epochs=1")
    job = cluster.job("0-1", *options)
    assert f"in the queue already, job {job}_1" in cluster.submit("0-1", *options)
    for k in (0, 1):
        assert cluster.slurm.await_state(f"{job}_{k}", "COMPLETED", "FAILED") == "COMPLETED"
    found = cluster.slurm.details(f"{job}_0")
    assert (found["Partition"], found["Requeue"]) == ("main", "1")


def test_a_job_that_is_cancelled_before_it_goes_on_submits_nothing(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    site = Site(cpus=1, spread=0, command="touch", setup=(f"touch {tmp_path}/there", "sleep 60"))
    text = script.go_on("spectral-all-x", tmp_path, [str(tmp_path / "went_on")], site)
    (tmp_path / "job.sh").write_text(text)
    job = commands.submit(tmp_path / "job.sh")
    assert await_((tmp_path / "there").exists)
    slurm.run("scancel", job)
    assert await_(lambda: slurm.details(job)["JobState"] == "CANCELLED")
    assert not await_((tmp_path / "went_on").exists, 2)


@pytest.mark.chaos
def test_the_table_tells_what_the_queue_does_and_a_cancelled_task_stays_cancelled(
    cluster: Cluster,
) -> None:
    slurm = cluster.slurm
    job = cluster.job("0-1", "--at-once", 1)
    assert cluster.standing(1)["state"] == "waiting"
    slurm.run("scontrol", "hold", f"{job}_1")
    assert await_(lambda: cluster.steps(0) > 10)
    found = cluster.standing(0)
    assert (found["state"], found["job"]) == ("running", f"{job}_0")
    assert found["node"]
    text = cluster.spectral("status", "--runs", cluster.home).stdout
    assert f"is held (JobHeldAdmin): scontrol release {job}_1" in text  # root is one
    assert "2 runs: 1 running, 1 held; " in text
    slurm.run("scancel", f"{job}_0")
    assert slurm.await_state(f"{job}_0", "CANCELLED", "PENDING") == "CANCELLED"
    assert cluster.standing(0)["state"] == "stopped"
    slurm.run("scancel", job)
    assert cluster.standing(1)["state"] == "not started"
    assert "#SBATCH --array=0-1\n" in cluster.submit("0-1", "--dry-run")


@pytest.mark.chaos
def test_parts_are_prepared_and_merged_though_one_is_killed(
    cluster: Cluster, source: Path, tmp_path: Path
) -> None:
    """Submitted twice; one process is killed in the middle. The bytes are those of one machine."""
    out = tmp_path / "out"
    words = ("toy", "--source", source, *TOY, "--out")
    command = ("submit", "prepare", *words, out, "--parts", 5, "--site", cluster.site)
    first = cluster.spectral(*command)
    assert first.returncode == 0, first.stderr
    jobs = {kind: job for job, kind in re.findall(r"^job (\d+): (\w+)", first.stdout, re.M)}
    again = cluster.spectral(*command)
    assert re.findall(r"^job", again.stdout, re.M) == [], again.stderr
    assert "in the queue already" in again.stdout
    folder = out / "toy" / "sub4-s32-calib0.2" / "parts" / "3"
    assert await_(lambda: bool(list(folder.glob("train/*.partial"))), 150)
    for process in pids("--part 3/5"):
        os.kill(process, signal.SIGKILL)
    array = jobs["prepare"]
    cluster.slurm.await_state(jobs["merge"], "COMPLETED", "FAILED", "CANCELLED", seconds=250)
    states = cluster.slurm.states()
    assert states[jobs["list"]] == states[jobs["merge"]] == states[f"{array}_3"] == "COMPLETED"
    assert cluster.slurm.details(f"{array}_3")["Restarts"] == "1"
    whole = spectral_here("prepare", *words, tmp_path / "whole")
    assert whole.returncode == 0
    assert files_of(out) == files_of(tmp_path / "whole")
    assert "finished already" in cluster.spectral(*command).stdout


def pids(words: str) -> list[int]:
    """Of our Python processes with these words on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if words in line and "spectral_shards.py prepare" in line and not line.startswith("srun"):
            found.append(int(path.parent.name))
    return found


@pytest.mark.chaos
def test_a_preempted_task_and_one_of_a_node_that_went_down_go_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    """First by a job of another partition that takes all cores, then by the node itself; a drain
    disturbs nothing.
    """
    slurm = cluster.slurm
    job = cluster.job("0", "--set", "epochs=120")
    assert await_(lambda: cluster.steps(0) > 20, 150)
    slurm.run("sbatch", "-p", "urgent", "-c", 4, "--output=/dev/null", "--wrap", "sleep 1")
    assert await_(lambda: slurm.details(f"{job}_0")["Restarts"] == "1", 60)
    before = cluster.steps(0)
    assert await_(lambda: cluster.steps(0) > before, 150)
    node = slurm.run("sinfo", "-h", "-o", "%n")
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    before = cluster.steps(0)
    assert await_(lambda: cluster.steps(0) > before, 60)
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    assert await_(lambda: slurm.details(f"{job}_0")["Restarts"] == "2", 60)
    slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert slurm.await_state(f"{job}_0", "COMPLETED", "FAILED", seconds=200) == "COMPLETED"
    undisturbed(cluster.data, tmp_path / "reference", 0, "--set", "epochs=120")
    expected = tmp_path / "reference" / cluster.run(0).relative_to(cluster.home)
    assert_same_weights(cluster.run(0), expected)


@pytest.mark.chaos
def test_a_task_in_its_grace_is_known_as_preempted(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    work = ("--output=/dev/null", "--wrap", "trap '' TERM; sleep 60 & wait; sleep 60")
    job = slurm.run("sbatch", "--parsable", "--array=3", *work)
    slurm.await_state(f"{job}_3", "RUNNING")
    assert preempted() == set()
    slurm.run("sbatch", "-p", "urgent", "-c", 4, "--output=/dev/null", "--wrap", "sleep 1")
    assert await_(lambda: preempted() == {f"{job}_3"}, 30)
    slurm.run("scancel", job)


@pytest.mark.chaos
def test_a_time_limit_shorter_than_the_training_chains(cluster: Cluster) -> None:
    """Slurm keeps minutes: the signal may come up to 60 s earlier."""
    job = cluster.job("0", "--set", "epochs=100000", "--time", "2", "--", "--signal=USR2@20")
    assert await_(lambda: cluster.slurm.details(f"{job}_0")["Restarts"] == "1", 200)
    assert re.search(r"stopped, saved at step [1-9]", cluster.log(0))
    before = cluster.steps(0)
    assert await_(lambda: cluster.steps(0) > before, 100)
    cluster.slurm.run("scancel", job)


@pytest.mark.chaos
def test_a_task_that_runs_into_its_limit_goes_on(cluster: Cluster) -> None:
    """Without a warning: SIGTERM at the limit, to be killed in KillWait."""
    job = cluster.job("0", "--set", "epochs=100000", "--time", "1", "--", "--signal=CONT@30")
    assert await_(lambda: cluster.slurm.details(f"{job}_0")["Restarts"] == "1", 200)
    before = cluster.steps(0)
    assert await_(lambda: cluster.steps(0) > before, 100)
    cluster.slurm.run("scancel", job)


@pytest.mark.chaos
def test_where_an_array_is_too_small_a_task_trains_several_runs(cluster: Cluster) -> None:
    """Three seeds of four shards on a Slurm of eight tasks an array."""
    said = cluster.submit("all", "--seeds", 3, "--set", "epochs=1")
    assert "12 runs, array 0-5," in said
    (job,) = re.findall(r"^job (\d+):", said, re.M)
    for k in range(6):
        assert cluster.slurm.await_state(f"{job}_{k}", "COMPLETED", "FAILED") == "COMPLETED"
    assert len(list(cluster.home.glob("toy/*/*/*/result.json"))) == 12


@pytest.mark.chaos
def test_a_second_task_on_a_shard_is_refused_and_a_killed_one_does_not_block(
    cluster: Cluster,
) -> None:
    first = cluster.job("0", "--set", "epochs=100000")
    assert await_(lambda: cluster.steps(0) > 5, 150)
    script = next(cluster.home.glob("slurm/*/job.sh"))
    second = cluster.slurm.run("sbatch", "--parsable", script)
    assert cluster.slurm.await_state(f"{second}_0", "FAILED", "COMPLETED") == "FAILED"
    assert "another process trains" in cluster.log(0)
    assert cluster.standing(0)["state"] == "running"
    cluster.slurm.run("scancel", "--signal=KILL", "--full", first)
    cluster.slurm.run("scancel", first)
    third = cluster.slurm.run("sbatch", "--parsable", script)
    before = cluster.steps(0)
    assert await_(lambda: cluster.steps(0) > before, 150)
    cluster.slurm.run("scancel", third)


@pytest.mark.chaos
def test_two_processes_train_one_shard(cluster: Cluster) -> None:
    """By gloo, as ranks that srun numbers; a stop is agreed on, and they go on."""
    job = cluster.job("0", "--processes", 2)
    assert await_(lambda: cluster.steps(0) > 20, 150)
    cluster.slurm.run("scancel", "--signal=USR2", job)
    assert await_(lambda: cluster.slurm.details(f"{job}_0")["Restarts"] == "1", 60)
    assert cluster.slurm.await_state(f"{job}_0", "COMPLETED", "FAILED") == "COMPLETED"
    rows = [json.loads(x) for x in (cluster.run(0) / "log.jsonl").read_text().splitlines()]
    starts = [row for row in rows if row["kind"] == "start"]
    assert [row["processes"] for row in starts] == [2, 2]
    assert starts[1]["step"] > 20


@pytest.mark.chaos
def test_shards_that_start_from_another_wait_for_it(cluster: Cluster) -> None:
    said = cluster.submit("0-1", "--init-shard", 0, "--set", "epochs=1")
    first, second = re.findall(r"^job (\d+):", said, re.M)
    assert f"after afterok:{first}_0" in said
    assert cluster.slurm.await_state(f"{second}_1", "COMPLETED", "FAILED") == "COMPLETED"
    assert cluster.slurm.states()[f"{first}_0"] == "COMPLETED"


@pytest.mark.chaos
def test_an_ensemble_waits_for_its_runs_and_reports_without_one_that_failed(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    cluster.data = copied(data / SUB4, tmp_path)
    shard = cluster.data / "train" / "shard_02.beton"
    shard.write_bytes(shard.read_bytes()[:-1])
    job = cluster.job("all", "--set", "epochs=2")
    command = ("submit", "ensemble", "--data", cluster.data, "--runs", cluster.home, "--gpus", 0,
               "--site", cluster.site)  # fmt: skip
    done = cluster.spectral(*command)
    assert done.returncode == 0, done.stderr
    (fused,) = re.findall(r"^job (\d+): ensemble", done.stdout, re.M)
    assert f"afterany:{job}_2" in done.stdout
    assert f"in the queue already, job {fused}" in cluster.spectral(*command).stdout
    assert cluster.slurm.await_state(fused, "COMPLETED", "FAILED", seconds=250) == "COMPLETED"
    log = next(cluster.home.glob("slurm/spectral-ensemble-*/job.log")).read_text()
    assert "shard 2 has not finished training: left out" in log
    assert (cluster.run(0).parent / "ensemble.json").exists()
    assert "ensemble" in (cluster.run(0).parent / "report.html").read_text().lower()
