"""Tasks in, chunks in the same order out: worker processes that are watched.

The standard library's pools either lose a worker that is killed (`Pool` hangs) or give up
(`ProcessPoolExecutor`), and know no time limit. Here a worker that dies, or is at one image for too
long, is replaced, its tasks are done again, and the image is left out if it was the cause
(`pipeline.stage.blame`). Payloads lie in shared memory, which is bounded by the number of slots.
"""

import atexit
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import connection, reduction, resource_tracker
from types import TracebackType
from typing import Any, Self, TypeVar

from pipeline.choices import IMAGE_SECONDS
from pipeline.errors import StoppedError, WorkerError, printable
from pipeline.preparation import Preparation
from pipeline.sources.index import Index
from pipeline.stage.blame import Job, Verdicts, ended, out_of_time, signal_name
from pipeline.stage.messages import Answer, Chunk, Task
from pipeline.stage.shared import BETWEEN, NOWHERE, SharedMemory, StartupErrors, Step
from pipeline.stage.worker import work

TASKS_A_WORKER = 2  # one at work, one waiting, so that workers do not wait for the writer
SLOTS_A_WORKER = 4
WORKER_BYTES = 4_000_000_000  # beyond what it starts with; the largest good image takes 1.5 GB
START_SECONDS = 600.0  # that a worker may take to start; to compile all anew takes a minute
_PIPE_BYTES = 1 << 16  # what a pipe takes in though nobody reads
_REAP_SECONDS = 10.0  # one that hangs in a disk's driver cannot even be killed
_LOOK_SECONDS = 1.0  # how often the clocks are looked at, at most

T = TypeVar("T")


@dataclass
class _Worker:
    """jobs: in the order in which they were sent; it is at work on the first. step, since: where it
    was seen first, and when.
    """

    seat: int
    process: Any
    pipe: connection.Connection
    started: bool = False
    jobs: list[Job] = field(default_factory=list)
    step: Step = NOWHERE
    since: float = 0.0


class Pool:
    """`workers` processes at work on one preparation. A context manager.

    image_seconds, worker_bytes: what one image may take of time and memory.
    """

    def __init__(
        self,
        prep: Preparation,
        index: Index,
        workers: int,
        slot_bytes: int,
        verdicts: Verdicts,
        image_seconds: float = IMAGE_SECONDS,
        worker_bytes: int = WORKER_BYTES,
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._memory = SharedMemory(workers, workers * SLOTS_A_WORKER, slot_bytes)
        self._shared = self._memory.open()
        self._free = list(range(workers * SLOTS_A_WORKER))
        self._startup = StartupErrors()
        source = (index.root, index.summary.containers)
        self._args = (self._memory, prep, *source, self._startup, worker_bytes)
        self._verdicts = verdicts
        self._image_seconds, self._worker_bytes = image_seconds, worker_bytes
        self._again: deque[Job] = deque()
        self._workers: dict[int, _Worker] = {}
        # Workers do not heed SIGTERM: whatever ends the parent, at its exit nobody waits for them
        atexit.register(self._kill)
        for seat in range(workers):
            self._start(seat)

    def _start(self, seat: int) -> None:
        self._shared.steps[seat] = NOWHERE.packed()
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(theirs, seat, *self._args), daemon=True)
        # Workers inherit the mask: what these mean is decided by the parent alone. The tracker,
        # which the first one would start, unblocks them
        resource_tracker.ensure_running()
        asked = {signal.SIGINT, *StoppedError.signals}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, asked)
        try:
            with self._startup.collected():
                process.start()
            theirs.close()
            self._workers[seat] = _Worker(seat, process, ours, since=time.monotonic())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.dismiss()
        if kind is not None:
            self._kill()
        for worker in self._workers.values():
            worker.process.join()
        atexit.unregister(self._kill)
        self._memory.close()
        self._startup.close()

    def _kill(self) -> None:
        for worker in self._workers.values():
            worker.process.kill()

    def dismiss(self) -> None:
        """No more tasks: workers end, which takes them a while."""
        for worker in self._workers.values():
            worker.pipe.close()

    def run(self, work: Iterable[tuple[Task, T]]) -> Iterator[tuple[T, Chunk, memoryview]]:
        """Each chunk with its payloads, in the order of tasks, numbered from 0; and with what goes
        with its task.

        The payloads are valid until the next chunk is asked for.
        """
        waiting, beside = iter(work), deque[T]()
        done: dict[int, tuple[Chunk, int]] = {}
        turn = 0

        def coming() -> Iterator[Task]:
            for task, other in waiting:
                beside.append(other)
                yield task

        tasks = coming()
        while True:
            self._hand_out(tasks)
            if turn in done:
                chunk, slot = done.pop(turn)
                yield beside.popleft(), chunk, self._shared.slot(slot)
                self._free.append(slot)
                turn += 1
            elif self._again or any(worker.jobs for worker in self._workers.values()):
                for chunk, slot in self._collect():
                    done[chunk.number] = chunk, slot
            else:
                return

    def _hand_out(self, waiting: Iterator[Task]) -> None:
        """Give tasks to workers that have room."""
        while True:
            worker = min(self._workers.values(), key=lambda w: len(w.jobs))
            if len(worker.jobs) >= TASKS_A_WORKER or (job := self._next(waiting)) is None:
                return
            if not self._give(worker, job):
                self._again.appendleft(job)
                return

    def _next(self, waiting: Iterator[Task]) -> Job | None:
        if self._again:
            return self._again.popleft()
        if not self._free or (task := next(waiting, None)) is None:
            return None
        return Job(task, self._free.pop())

    def _give(self, worker: _Worker, job: Job) -> bool:
        """Send a task; False if it has to wait, as a pipe might not take it in."""
        task = self._fed(job.for_worker(self._verdicts), job.slot)
        message = reduction.ForkingPickler.dumps(task)
        if len(message) > _PIPE_BYTES and worker.jobs:
            return False  # who is at work on an image may never read it
        worker.jobs.append(job)
        with suppress(OSError):  # it has died, which `_collect` sees
            worker.pipe.send_bytes(message)
        return True

    def _fed(self, task: Task, slot: int) -> Task:
        """Put what the parent has read into the slot, where the answer will lie later."""
        room = self._shared.slot(slot)
        if task.data is None or sum(map(len, task.data)) > len(room):
            return task
        at = 0
        for data in task.data:
            room[at : at + len(data)] = data
            at += len(data)
        return replace(task, data=None, sizes=[len(data) for data in task.data])

    def _collect(self) -> list[tuple[Chunk, int]]:
        """Wait for answers, or a while; replace workers that are lost."""
        workers = list(self._workers.values())
        handles = [handle for w in workers for handle in (w.pipe, w.process.sentinel)]
        ready = connection.wait(handles, min(_LOOK_SECONDS, self._image_seconds / 4))
        answers: list[tuple[Chunk, int]] = []
        for worker in workers:
            if worker.pipe in ready and self._answered(worker, answers):
                continue
            if worker.pipe in ready or worker.process.sentinel in ready:
                self._lost(worker, answers)
            elif not worker.started and time.monotonic() - worker.since > START_SECONDS:
                raise self._never_ready(worker)
            elif self._late(worker):
                worker.process.kill()
                self._lost(worker, answers, late=True)
        return answers

    def _answered(self, worker: _Worker, answers: list[tuple[Chunk, int]]) -> bool:
        """Read one answer; False if the worker is gone. WorkerError if it met an error."""
        try:
            answer: Answer = worker.pipe.recv()
        except (EOFError, OSError):
            return False
        if answer.error:
            raise WorkerError(f"a worker process met an error{self._where(worker)}: {answer.error}")
        if answer.chunk is None:
            worker.started = True
        else:
            answers.append((answer.chunk, worker.jobs.pop(0).slot))
        return True

    def _where(self, worker: _Worker) -> str:
        """The image that a worker is at, for a message: the system may not name the file."""
        step = self._step(worker)
        at = worker.jobs and step.doing != BETWEEN and step.task == worker.jobs[0].task.number
        return f" at {printable(worker.jobs[0].task.ids[step.image])}" if at else ""

    def _late(self, worker: _Worker) -> bool:
        """Whether it has been at the same image for too long. Its start has a limit of its own, and
        what passed while nobody looked does not count.
        """
        if not worker.started:
            return False
        step, now = self._step(worker), time.monotonic()
        if step != worker.step or step.doing == BETWEEN:
            worker.step, worker.since = step, now
        return now - worker.since > self._image_seconds

    def _step(self, worker: _Worker) -> Step:
        return Step.unpacked(int(self._shared.steps[worker.seat]))

    def _lost(self, worker: _Worker, answers: list[tuple[Chunk, int]], late: bool = False) -> None:
        """Put a new worker in the place of one that is dead; it begins with the task that was
        being worked on.
        """
        worker.process.join(_REAP_SECONDS)
        if not worker.started:
            raise self._never_started(worker)
        while self._left(worker) and self._answered(worker, answers):
            pass
        worker.pipe.close()
        step, status = self._step(worker), worker.process.exitcode
        self._start(worker.seat)
        loss = (
            out_of_time(self._image_seconds, step.doing)
            if late
            else ended(status, self._worker_bytes)
        )
        if worker.jobs:
            job = worker.jobs.pop(0)
            at = step.doing != BETWEEN and step.task == job.task.number
            job.lost(loss, step.image if at else None, self._verdicts)
            self._give(self._workers[worker.seat], job)
        self._again.extendleft(reversed(worker.jobs))

    def _left(self, worker: _Worker) -> bool:
        """Whether a dead worker has left something to read."""
        try:
            return worker.pipe.poll()
        except OSError:
            return False

    def _never_ready(self, worker: _Worker) -> WorkerError:
        said = self._startup.last()
        return WorkerError(
            f"worker process {worker.process.pid} has not started within {START_SECONDS:g} s"
            f"{': ' + said if said else ''}. Is the disk gone that Python is installed on, or are "
            "there too many --workers? Run the same command again to go on"
        )

    def _never_started(self, worker: _Worker) -> WorkerError:
        status = worker.process.exitcode
        how = f"exit status {status}"
        if status is not None and status < 0:
            how = f"killed by {signal_name(-status)}"
        elif said := self._startup.last():
            how += f": {said}"
        hint = (
            "; SIGKILL often means that memory ran out: try fewer --workers" if status == -9 else ""
        )
        return WorkerError(
            f"worker process {worker.process.pid} ended before it had started ({how}){hint}. "
            "Nothing is lost but time: run the same command again"
        )
