"""Jobs and slots in; runs that have finished, and one error that names those that failed, out.

One thread looks after everything, several times a second: signals, ends, starts, the display.
A job that fails takes nothing along but the jobs that were to start from its network.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any, Self

from pipeline.errors import SpectralError, StoppedError, describe
from trainer.jobs.launch import STOPPED, Ended, Launched
from trainer.jobs.slots import Slot
from trainer.record import stderr
from trainer.record.runlog import NAME, Follower

POLL = 0.1  # seconds between two looks at the processes


class FailedJobsError(SpectralError):
    """Some of several jobs failed; the others have finished."""


class State(StrEnum):
    """What has become of a job."""

    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"
    WAITING = "waiting"
    FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run in processes of its own, known by its directory.

    shard: how people know it. after: directories of jobs that have to be finished before.
    prepare: called just before it starts, to write what its command reads.
    """

    shard: str
    directory: Path
    command: tuple[str, ...]
    after: tuple[Path, ...] = ()
    prepare: Callable[[], None] = lambda: None


class Entry:
    """A job and what has become of it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.state = State.WAITING
        self.error = ""
        self.log = Follower(job.directory / NAME)
        self.launched: Launched | None = None
        self.slot: Slot | None = None

    def start(self, slot: Slot) -> None:
        """Start its processes; a machine that cannot is a failure of this job."""
        try:
            self.job.prepare()
            self.launched = Launched(self.job.command, slot, self.job.directory)
        except OSError as error:
            self.fail(describe(error))
        else:
            self.slot, self.state = slot, State.RUNNING

    def fail(self, error: str) -> None:
        """Note why."""
        self.state, self.error = State.FAILED, error

    def end(self, ended: Ended) -> Slot:
        """Note how it ended; the slot is free again."""
        assert self.slot is not None
        if ended.status == STOPPED:
            self.state = State.STOPPED
        elif ended.status:
            self.fail(f"{ended.error} (more in {stderr.path_of(self.job.directory)})")
        else:
            self.state = State.FINISHED
        return self.slot


class Watch:
    """What is told of the jobs of a queue while it runs; this one tells nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The queue has ended."""

    def changed(self, entry: Entry) -> None:
        """A job has started or ended."""

    def look(self) -> None:
        """Some time has passed."""


class Queue:
    """Jobs on their way through slots."""

    def __init__(self, entries: list[Entry], slots: list[Slot], watch: Watch) -> None:
        self.entries = entries
        self._by_directory = {entry.job.directory: entry for entry in entries}
        self._free = list(slots)
        self._watch = watch
        self._obeyed = 0

    def run(self) -> None:
        """Until all jobs have ended, or those that ran when a signal came."""
        with Signals() as received, self._watch:
            try:
                while not self._turn(received):
                    time.sleep(POLL)
            finally:
                for entry in self._running():
                    assert entry.launched is not None
                    entry.launched.kill()
        self._conclude(received)

    def _turn(self, received: list[int]) -> bool:
        """Look at everything once; whether all is over."""
        self._obey(received)
        self._collect()
        if not received:
            self._start_ready()
        self._watch.look()
        return not self._running() and (bool(received) or not self._in(State.WAITING))

    def _obey(self, received: list[int]) -> None:
        for number in received:
            for entry in self._running():
                assert entry.launched is not None
                entry.launched.ask(number)
        if received.count(signal.SIGINT) > 1:  # the user does not want to wait
            raise KeyboardInterrupt

    def _collect(self) -> None:
        for entry in self._running():
            assert entry.launched is not None
            if ended := entry.launched.poll():
                self._free.append(entry.end(ended))
                self._watch.changed(entry)

    def _start_ready(self) -> None:
        for entry in self._in(State.WAITING):
            before = self._before(entry)
            if failed := [one for one in before if one.state is State.FAILED]:
                entry.fail(f"shard {failed[0].job.shard}, which it starts from, failed")
            elif any(one.state is State.STOPPED for one in before):
                entry.state = State.STOPPED
            elif self._free and all(one.state is State.FINISHED for one in before):
                entry.start(self._free[0])
                if entry.state is State.RUNNING:
                    del self._free[0]
            else:
                continue
            self._watch.changed(entry)

    def _before(self, entry: Entry) -> list[Entry]:
        """What it waits for in this queue; what is not in it has finished already."""
        return [self._by_directory[d] for d in entry.job.after if d in self._by_directory]

    def _in(self, state: State) -> list[Entry]:
        return [entry for entry in self.entries if entry.state is state]

    def _running(self) -> list[Entry]:
        return self._in(State.RUNNING)

    def _conclude(self, received: list[int]) -> None:
        if signal.SIGINT in received:
            raise KeyboardInterrupt
        if failed := self._in(State.FAILED):
            listed = "".join(f"\n  shard {e.job.shard}: {e.error}" for e in failed)
            raise FailedJobsError(
                f"{len(failed)} of {len(self.entries)} shards failed:{listed}\n"
                "mend that and run the same command again: it leaves finished shards as they are"
            )
        if left := [*self._in(State.STOPPED), *self._in(State.WAITING)]:
            shards = ", ".join(entry.job.shard for entry in left)
            raise StoppedError(
                f"stopped before shards {shards} were finished; the same command goes on"
            )


class Signals:
    """While in its context, signals that ask to end are noted, and nothing else happens."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> list[int]:
        for number in (*StoppedError.signals, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self._received

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received.append(number)
