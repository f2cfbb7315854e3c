"""Several runs at a time: slots, processes, signals, failures; all with real processes."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.errors import ConfigError, StoppedError
from tests.conftest import ROOT, SUB4, spectral_here
from trainer.jobs.launch import Ended, Launched
from trainer.jobs.queue import Entry, FailedJobsError, Job, Queue, State, Watch
from trainer.jobs.slots import Slot, Wanted, environments, make_slots, named_devices
from trainer.jobs.watch import LiveTable
from trainer.run.spec import RunSpec

pytestmark = pytest.mark.processes

FAST = ("--recipe", "digits", "--set", "batch_size=16", "--set", "model_args.width=8",
        "--name", "x")  # fmt: skip


def await_(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def gone(group: int) -> bool:
    """Whether no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def start(*command: object, **env: str) -> subprocess.Popen[str]:
    """A process that leads a group of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        start_new_session=True,
    )


# slots


def test_jobs_spread_over_the_gpus_and_share_them_only_if_asked() -> None:
    gpus = ["0", "1", "GPU-a", "GPU-b"]
    assert [s.devices for s in make_slots(Wanted(), gpus, 16, 9)] == [(g,) for g in gpus]
    pairs = make_slots(Wanted(gpus=2), gpus, 16, 9)
    assert [s.devices for s in pairs] == [("0", "1"), ("GPU-a", "GPU-b")]
    assert [s.processes for s in pairs] == [2, 2]
    assert pairs[0].threads == 4
    assert len(make_slots(Wanted(gpus=3), gpus, 16, 9)) == 1  # the fourth GPU stays idle
    shared = make_slots(Wanted(jobs_per_gpu=3), gpus[:2], 16, 9)
    assert [s.devices[0] for s in shared] == ["0", "1", "0", "1", "0", "1"]
    assert {(s.sharing, s.threads) for s in shared} == {(3, 2)}


def test_a_device_is_shared_by_no_more_jobs_than_there_are() -> None:
    """Lest two jobs have a third of the memory each."""
    assert make_slots(Wanted(jobs_per_gpu=3), ["0", "1"], 16, 2) == [
        Slot(devices=("0",), threads=8),
        Slot(devices=("1",), threads=8),
    ]
    assert make_slots(Wanted(jobs=8), [], 8, 2) == [Slot(sharing=2, threads=4)] * 2


@pytest.mark.parametrize(
    ("wanted", "gpus", "message"),
    [
        (Wanted(gpus=3), 2, "--gpus 3: torch sees 2.*at most --gpus 2"),
        (Wanted(gpus=1), 0, "--gpus 1: torch sees no GPU here.*--jobs N"),
        (Wanted(jobs_per_gpu=2), 0, "--jobs-per-gpu 2: torch sees no GPU here"),
        (Wanted(jobs=2), 1, "--jobs 2 is for machines without a GPU.*--jobs-per-gpu"),
    ],
)
def test_what_the_machine_does_not_have_is_refused(wanted: Wanted, gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_slots(wanted, [str(g) for g in range(gpus)], 8, 4)


def test_within_torchrun_there_is_no_queue() -> None:
    torchrun = {"WORLD_SIZE": "2"}
    assert not Wanted().needs_queue(1, torchrun)
    assert not Wanted(jobs=4).needs_queue(1, {})
    assert Wanted().needs_queue(2, {})
    assert Wanted(gpus=2).needs_queue(1, {})
    with pytest.raises(ConfigError, match="torchrun trains one shard"):
        Wanted().needs_queue(2, torchrun)
    with pytest.raises(ConfigError, match="leave out --gpus"):
        Wanted(gpus=2).needs_queue(1, torchrun)


def test_devices_are_named_as_the_user_names_them() -> None:
    assert named_devices(None, 2) == ["0", "1"]
    assert named_devices("3, GPU-8f,5", 3) == ["3", "GPU-8f", "5"]
    assert named_devices("1,9", 1) == ["1"]  # torch sees no ninth GPU
    assert named_devices("", 0) == []
    assert named_devices("MIG-a,MIG-b", 1) == ["MIG-a", "MIG-b"]  # torch counts only one


def test_environments_pin_devices_and_say_what_torchrun_says() -> None:
    (one,) = environments(Slot(devices=("GPU-8f",), sharing=3, threads=2), {"A": "b"}, 0)
    assert one == {
        "A": "b",
        "CUDA_VISIBLE_DEVICES": "GPU-8f",
        "SPECTRAL_JOBS_PER_DEVICE": "3",
        "OMP_NUM_THREADS": "2",
        "NUMBA_NUM_THREADS": "2",
    }
    for asked, threads in (("1", "1"), ("7", "2"), ("7,2", "2"), ("1,4", "1"), ("", "2")):
        (kept,) = environments(Slot(threads=2), {"OMP_NUM_THREADS": asked}, 0)
        assert kept["OMP_NUM_THREADS"] == threads  # no more than the slot's share
    assert "CUDA_VISIBLE_DEVICES" not in kept
    first, second = environments(Slot(devices=("4", "6"), processes=2), {}, 29501)
    assert first["CUDA_VISIBLE_DEVICES"] == second["CUDA_VISIBLE_DEVICES"] == "4,6"
    assert (second["RANK"], second["LOCAL_RANK"]) == ("1", "1")
    assert (first["RANK"], first["LOCAL_RANK"]) == ("0", "0")
    for env in (first, second):
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == ("2", "2")
        assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("127.0.0.1", "29501")


# processes

GLOO = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
if dist.get_rank() == 1 and sys.argv[1] == "fail":
    print("Error: this disk is full", file=sys.stderr)
    sys.exit(1)
value = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(value)
print("sum", value.item(), file=sys.stderr)
dist.barrier()
dist.destroy_process_group()  # the process that ends first would abort the other
"""


def test_processes_of_a_job_find_each_other_and_end_together(tmp_path: Path) -> None:
    """Two jobs of two processes: one adds up, in the other a process fails before it does."""
    jobs = {
        what: Launched([sys.executable, "-c", GLOO, what], Slot(processes=2), tmp_path / what)
        for what in ("work", "fail")
    }
    ended: dict[str, Ended] = {}

    def all_ended() -> bool:
        for what in jobs.keys() - ended:
            if found := jobs[what].poll():
                ended[what] = found
        return len(ended) == 2

    try:
        await_(all_ended)
    finally:
        for job in jobs.values():
            job.kill()
    assert ended["work"] == Ended(status=0)
    assert "sum 3.0" in (tmp_path / "work" / "stderr.log").read_text()
    assert "sum 3.0" in (tmp_path / "work" / "stderr_1.log").read_text()
    assert ended["fail"] == Ended(status=1, error="process 1: this disk is full")
    assert (
        "--- failed: process 1: this disk is full" in (tmp_path / "fail" / "stderr.log").read_text()
    )


def test_a_process_that_would_wait_for_ever_ends_after_another_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.jobs.launch.FAILED_GRACE", 0.5)
    command = ["sh", "-c", "if [ $RANK = 1 ]; then exit 3; else exec sleep 600; fi"]
    job = Launched(command, Slot(processes=2), tmp_path)
    ended: list[Ended] = []
    await_(lambda: ended.extend(filter(None, [job.poll()])) or ended, 20)
    assert ended == [Ended(status=3, error="process 1: ended with exit status 3")]


def test_the_process_that_says_why_is_the_one_that_is_quoted(tmp_path: Path) -> None:
    """Both have ended before anyone looks; one only lost its peer."""
    why = "Error: the disk is full"
    command = ["sh", "-c", f"if [ $RANK = 1 ]; then echo {why}; else echo no peer; fi >&2; exit 1"]
    job = Launched(command, Slot(processes=2), tmp_path)
    await_(lambda: (tmp_path / "stderr_1.log").read_text() == why + "\n")
    await_(lambda: "no peer" in (tmp_path / "stderr.log").read_text())
    time.sleep(0.3)
    assert job.poll() == Ended(status=1, error="process 1: the disk is full")


# queues


def shell(root: Path, shard: int, script: str, after: int | None = None) -> Entry:
    """A job of a few shell commands, which run in its directory."""
    directory = root / f"shard_{shard:02d}"
    command = ("sh", "-c", f"cd {directory}; {script}")
    before = () if after is None else (root / f"shard_{after:02d}",)
    return Entry(Job(shard=str(shard), directory=directory, command=command, after=before))


def test_a_job_starts_after_the_one_that_it_needs(tmp_path: Path) -> None:
    entries = [
        shell(tmp_path, 0, "test -e ../shard_02/done", after=2),
        shell(tmp_path, 1, "test -e ../shard_02/done", after=2),
        shell(tmp_path, 2, "sleep 0.5; touch done"),
    ]
    Queue(entries, [Slot(), Slot()], Watch()).run()
    assert {entry.state for entry in entries} == {State.FINISHED}


def test_a_failure_takes_along_only_what_needs_it(tmp_path: Path) -> None:
    entries = [
        shell(tmp_path, 0, "true", after=1),
        shell(tmp_path, 1, "echo Error: no luck >&2; exit 1"),
        shell(tmp_path, 2, "kill -9 $$"),
        shell(tmp_path, 3, "touch done"),
    ]
    with pytest.raises(FailedJobsError) as error:
        Queue(entries, [Slot()], Watch()).run()
    message = str(error.value)
    assert message.startswith("3 of 4 shards failed:")
    assert "shard 0: shard 1, which it starts from, failed" in message
    assert f"shard 1: no luck (more in {tmp_path}/shard_01/stderr.log)" in message
    assert "shard 2: killed by SIGKILL (often: memory ran out)" in message
    assert (tmp_path / "shard_03" / "done").exists()


def test_a_job_that_stopped_by_itself_leaves_the_others(tmp_path: Path) -> None:
    entries = [
        shell(tmp_path, 0, "exit 75"),
        shell(tmp_path, 1, "true"),
        shell(tmp_path, 2, "true", after=0),
    ]
    with pytest.raises(StoppedError, match="before shards 0, 2 were finished"):
        Queue(entries, [Slot()], Watch()).run()
    assert entries[1].state is State.FINISHED


QUEUE = """
import sys
from pathlib import Path
from pipeline.errors import StoppedError
from tests.test_queue import Queue, Slot, Watch, shell
root = Path(sys.argv[1])
entries = [shell(root, k, "touch started; " + sys.argv[2]) for k in range(3)]
try:
    Queue(entries, [Slot(), Slot()], Watch()).run()
except StoppedError as error:
    print(error)
    sys.exit(75)
except KeyboardInterrupt:
    sys.exit(130)
"""
DEAF = "trap '' INT TERM; exec sleep 600"


@pytest.mark.parametrize(
    ("script", "signals", "status"),
    [
        ("exec sleep 600", [signal.SIGTERM], 75),
        ("exec sleep 600", [signal.SIGUSR2], 75),
        ("exec sleep 600", [signal.SIGINT], 130),
        (DEAF, [signal.SIGINT, signal.SIGINT], 130),  # a second Ctrl-C does not wait
        (DEAF, [signal.SIGKILL], -9),
    ],
)
def test_no_child_outlives_the_queue(
    tmp_path: Path, script: str, signals: list[int], status: int
) -> None:
    """Only the parent gets the signal; nothing new is started."""
    queue = start("-c", QUEUE, tmp_path, script)
    await_(lambda: len(list(tmp_path.glob("*/started"))) == 2)
    for number in signals:
        queue.send_signal(number)
        time.sleep(0.5)
    out, _ = queue.communicate(timeout=20)
    assert queue.returncode == status
    await_(lambda: gone(queue.pid), 5)
    assert len(list(tmp_path.glob("*/started"))) == 2
    if status == 75:
        assert "stopped before shards 0, 1, 2 were finished" in out


# trainings


def test_a_damaged_shard_fails_and_the_others_finish(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time, by relative paths; then once more for those that have finished."""
    path = shutil.copytree(data / SUB4, tmp_path / "copy") / "train" / "shard_01.beton"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.chdir(tmp_path)
    command = ("-v", "train", "--data", "copy", "--runs", "runs", *FAST, "--set", "epochs=1")
    done = spectral_here(*command, "--shard", "all", "--jobs", 2)
    assert done.returncode == 1, done.stderr
    assert (
        f"1 of 4 shards failed:\n  shard 1: {tmp_path}/copy/train/shard_01.beton is trunc"
        in done.stderr
    )
    assert done.stdout.count(": started, ") == 4
    assert done.stdout.count(": 1 epochs in ") == 3
    for k in (0, 2, 3):
        run = Path("runs", "toy", "copy", "x", f"shard_{k:02d}")
        assert json.loads((run / "result.json").read_text())["epochs"] == 1
        assert "epoch 1/1" in (run / "stderr.log").read_text()
        assert RunSpec.load(run / "spec.json").planes == (k,)
    again = spectral_here(*command, "--shard", "0,3")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already finished, 1 epochs") == 2


def test_a_queue_goes_on_when_its_reader_has_gone(data: Path, tmp_path: Path) -> None:
    """As in `spectral train --shard 0,1 | head -1`."""
    command = ("train", "--data", data / SUB4, "--runs", tmp_path, *FAST, "--set", "epochs=1")
    queue = subprocess.Popen(
        [sys.executable, "-m", "cli", *map(str, command), "--shard", "0,1", "--jobs", "2"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert queue.stdout is not None
    assert queue.stderr is not None
    assert "started" in queue.stdout.readline()
    queue.stdout.close()
    error = queue.stderr.read()
    assert queue.wait(timeout=120) == 0, error
    assert len(list(tmp_path.rglob("result.json"))) == 2


def test_a_stopped_queue_leaves_no_process_and_says_so_by_its_status(
    data: Path, tmp_path: Path
) -> None:
    """SIGTERM to the parent alone, as from a batch system."""
    queue = start("-m", "cli", "train", "--data", data / SUB4, "--runs", tmp_path, *FAST,
                  "--set", "epochs=5000", "--shard", "0-1")  # fmt: skip
    await_(lambda: queue.poll() is not None or list(tmp_path.rglob("log.jsonl")))
    queue.send_signal(signal.SIGTERM)
    _, error = queue.communicate(timeout=60)
    assert queue.returncode == 75, error
    assert "Error: stopped before shards 0, 1 were finished" in error
    assert gone(queue.pid)
    assert not list(tmp_path.rglob("shard_01"))
    (said,) = tmp_path.rglob("stderr.log")
    assert said.read_text().endswith("--- stopped\n")
    assert (said.parent / "last.pt").exists()


def test_a_first_shard_that_nothing_will_finish_is_refused_at_once(
    data: Path, tmp_path: Path
) -> None:
    done = spectral_here("train", "--data", data / SUB4, "--runs", tmp_path, *FAST,
                         "--shard", "0-1", "--init-shard", 3)  # fmt: skip
    assert done.returncode == 1
    assert "--init-shard 3" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_live_table_shows_what_matters_where_not_all_fits(tmp_path: Path) -> None:
    entries = [shell(tmp_path, k, "true") for k in range(36)]
    for k, entry in enumerate(entries):
        entry.state = State.FINISHED if k < 10 else State.WAITING
    entries[20].state, entries[30].state = State.RUNNING, State.FAILED
    entries[20].log.status.add({"kind": "start", "step": 0, "steps": 500, "epochs": 5})
    entries[20].log.status.add({"kind": "train", "step": 250, "epoch": 2.5, "loss": 0.5})
    out = io.StringIO()
    Console(file=out, width=100).print(LiveTable(entries).table(room=6))
    lines = out.getvalue().splitlines()
    (running,) = [line for line in lines if "running" in line and line.split()[0] == "20"]
    assert {"2.5/5", "250/500", "0.5000"} <= set(running.split())
    assert any("failed" in line and line.split()[0] == "30" for line in lines)
    assert sum(line.split()[:1] and line.split()[0].isdecimal() for line in lines) == 6 + 1
    assert "1 running, 1 failed, 24 waiting, 10 finished" in out.getvalue()
