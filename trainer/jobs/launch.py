"""A command and a slot in; its processes, watched as one job, out.

All processes of a job end together: when one fails, the others would wait for it in a
collective for ever. They share the launcher's process group, and die with it (tether.py).
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StoppedError
from trainer.jobs.slots import Slot, environments
from trainer.record import stderr
from trainer.record.status import note_failure

FAILED_GRACE = 5.0  # seconds that the other processes have when one has failed
STOP_GRACE = 60.0  # seconds to write a checkpoint and end, when asked to
# A terminal sends Ctrl-C to all of the group; a second one would disturb those that are ending
INTERRUPT_DELAY = 1.0
STOPPED = StoppedError.exit_status
INTERRUPTED = 130
# Run as a file, it finds this very code whatever PYTHONPATH and the working directory hold
PROGRAM = Path(__file__).parents[2] / "spectral_shards.py"
_TETHER = Path(__file__).with_name("tether.py")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended. error: what the process that failed first said last."""

    status: int
    error: str = ""

    @property
    def described(self) -> str:
        """What stands in the job's stderr.log, for people and for `spectral status`."""
        if self.status in (0, STOPPED):
            return "stopped" if self.status else "finished"
        return f"failed: {self.error}"


class Launched:
    """The processes of one running job, `slot.processes` of them."""

    def __init__(self, command: Sequence[str], slot: Slot, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._deadline = float("inf")
        self._first_failed: int | None = None
        self._asked: set[int] = set()
        self._due: list[tuple[float, int]] = []
        self._stderr = [stderr.path_of(directory, rank) for rank in range(slot.processes)]
        stderr.note(self._stderr[0], f"{time.strftime('%F %T')} {shlex.join(command)}")
        self._starts = [path.stat().st_size if path.exists() else 0 for path in self._stderr]
        self._processes: list[subprocess.Popen[bytes]] = []
        tethered = [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *command]
        port = free_port() if slot.processes > 1 else 0
        try:
            for path, env in zip(self._stderr, environments(slot, os.environ, port), strict=True):
                self._processes.append(_start(tethered, env, path))
        except BaseException:
            self.kill()
            raise

    def poll(self) -> Ended | None:
        """None while any process runs; those that hold up the end are killed in time."""
        self._deliver()
        statuses = [process.poll() for process in self._processes]
        if self._first_failed is None:
            self._first_failed = self._failed_among(statuses)
            if self._first_failed is not None:
                asked = self._asked or statuses[self._first_failed] == STOPPED
                self._end_within(STOP_GRACE if asked else FAILED_GRACE)
        if None not in statuses:
            ended = self._ended()
            self._note(ended)
            return ended
        if time.monotonic() > self._deadline:
            self._signal(signal.SIGKILL)
        return None

    def _note(self, ended: Ended) -> None:
        """For people, in stderr.log; for `spectral status`, what the processes could not say."""
        stderr.note(self._stderr[0], ended.described)
        if ended.status not in (0, STOPPED):
            note_failure(self._directory, ended.error)

    def ask(self, number: int) -> None:
        """Ask all processes to end by a signal, once each; they are killed if they do not."""
        if number not in self._asked:
            self._asked.add(number)
            delay = INTERRUPT_DELAY if number == signal.SIGINT else 0.0
            self._due.append((time.monotonic() + delay, number))
            self._end_within(delay + STOP_GRACE)

    def kill(self) -> None:
        """End all processes now, and wait until they have."""
        self._signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def _deliver(self) -> None:
        now = time.monotonic()
        for _, number in (due for due in self._due if due[0] <= now):
            self._signal(number)
        self._due = [due for due in self._due if due[0] > now]

    def _signal(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)  # does nothing to one that has ended

    def _end_within(self, seconds: float) -> None:
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def _failed_among(self, statuses: list[int | None]) -> int | None:
        """The first to fail; of several at once the one that was killed, then the one that said
        why, then the one that wrote first: the others fail because their peer has gone.
        """
        failed = [rank for rank, status in enumerate(statuses) if status]

        def order(rank: int) -> tuple[bool, bool, float]:
            said = self._said(rank)
            return (
                (statuses[rank] or 0) > 0,
                not said.startswith("Error: "),
                self._stderr[rank].stat().st_mtime,
            )

        return min(failed, key=order, default=None)

    def _ended(self) -> Ended:
        if self._first_failed is None:
            return Ended(status=0)
        status = self._processes[self._first_failed].returncode
        killed = {-number for number in (*self._asked, signal.SIGKILL)}
        if status == STOPPED or (self._asked and status in killed | {INTERRUPTED}):
            return Ended(status=STOPPED)  # some are asked before they can listen
        return Ended(status=status, error=self._why(self._first_failed, status))

    def _why(self, rank: int, status: int) -> str:
        who = f"process {rank}: " if len(self._processes) > 1 else ""
        said = self._said(rank)
        if status < 0:
            hint = "often: memory ran out" if status == -signal.SIGKILL else said
            return f"{who}killed by {signal.Signals(-status).name}" + f" ({hint})" * bool(hint)
        return who + (said.removeprefix("Error: ") or f"ended with exit status {status}")

    def _said(self, rank: int) -> str:
        return stderr.last_error(self._stderr[rank], self._starts[rank])


def _start(command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file
        )


def free_port() -> int:
    """A TCP port of this machine that nothing uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
