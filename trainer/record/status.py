"""status.json of a run: what it is doing, where, and when it was last heard of.

It is written by the process that trains; by the queue that started it, if that process was killed.
A process that lives touches the file every `BEAT` seconds, so that a run whose machine has gone is
not taken for one that goes on, on shared disks without locks either.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

NAME = "status.json"
BEAT = 30.0  # seconds
ALIVE = 300.0  # seconds without a beat after which a run on another machine counts as gone
_JOB_IDS = ("SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID")
ACTIVE = ("starting", "training", "evaluating")


@dataclass(frozen=True, kw_only=True)
class State:
    """`state`: one of ACTIVE, finished, stopped or failed (`error` says why). `job`: of a cluster's
    scheduler. `saved`: the step of the last checkpoint. Times are in seconds since 1970.
    """

    state: str
    host: str
    pid: int
    started: float
    updated: float
    job: str | None = None
    step: int | None = None
    steps: int | None = None
    saved: int | None = None
    images_per_s: float | None = None
    error: str | None = None


def read(directory: Path) -> State | None:
    """What is known of a run; None where there is no such file, or it is damaged."""
    try:
        return State(**json.loads((directory / NAME).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def heard_of(directory: Path) -> float:
    """When the process that trains was last seen to live, in seconds since 1970. OSError."""
    return (directory / NAME).stat().st_mtime


def is_active(directory: Path) -> bool:
    """Whether a process trains there, as far as its machine and the time of its last beat tell."""
    state = read(directory)
    if state is None or state.state not in ACTIVE:
        return False
    if state.host == socket.gethostname():
        return _lives(state.pid, state.started)
    return is_elsewhere(directory)


def is_elsewhere(directory: Path) -> bool:
    """Whether a process on another machine trains there. The job that we are of has no other one:
    what it was before it went back into the queue has ended.
    """
    state = read(directory)
    if state is None or state.state not in ACTIVE or state.host == socket.gethostname():
        return False
    own = _job()
    return (own is None or own != state.job) and time.time() - heard_of(directory) < ALIVE


def note_failure(directory: Path, error: str) -> None:
    """What a run failed with, which can no longer say it itself."""
    state = read(directory) or _new("failed")
    _save(directory, replace(state, state="failed", error=error, updated=_now()))


class Status:
    """The file of a run that this process trains."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        before = read(directory)
        self._state = replace(_new("starting"), saved=before.saved if before else None)
        self._lock = threading.Lock()  # a beat must not meet a file that is being replaced
        self.update()

    def update(self, **known: Any) -> None:
        """Write what is known anew."""
        with self._lock:
            self._state = replace(self._state, updated=_now(), **known)
            _save(self._directory, self._state)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Touch the file as long as the block goes on."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                with self._lock, suppress(OSError):
                    os.utime(self._directory / NAME)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _job() -> str | None:
    """That this process is of, as a cluster's scheduler calls it."""
    job = next((os.environ[name] for name in _JOB_IDS if name in os.environ), None)
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job and task else job


def _new(state: str) -> State:
    return State(
        state=state,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_now(),
        updated=_now(),
        job=_job(),
    )


def _save(directory: Path, state: State) -> None:
    """Whole or absent for whoever reads it; not synced, as it is of no use after a power cut."""
    partial = directory / f"{NAME}.partial"
    partial.write_text(json.dumps(asdict(state), indent=1) + "\n")
    partial.replace(directory / NAME)


def _now() -> float:
    return round(time.time(), 3)


def _lives(pid: int, since: float) -> bool:
    """Whether the process that had this number then still runs: a number may be given anew."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return False
    if fields[0] == "Z":
        return False
    begun = time.time() - uptime + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return begun <= since + 2  # both clocks are rounded
