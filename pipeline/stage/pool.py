"""Tasks in, chunks in the same order out: worker processes that are watched.

The standard library's pools either lose a worker that is killed (`Pool` hangs) or
pickle every result through a pipe; here payloads lie in shared memory, a death ends
the run at once, and memory is bounded by the number of slots.
"""

import mmap
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, reduction, resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import WorkerError
from pipeline.preparation import Preparation
from pipeline.sources.index import Container
from pipeline.stage.worker import Chunk, Task, work

TASKS_A_WORKER = 2  # one at work, one waiting, so that workers do not wait for the writer
SLOTS_A_WORKER = 4


class SharedMemory:
    """Anonymous memory that workers map through a file descriptor, so /dev/shm may be small."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self.slot_bytes, self._total = slot_bytes, slots * slot_bytes
        self._fd = os.memfd_create("spectral")
        os.ftruncate(self._fd, self._total)

    def open(self) -> memoryview:
        """Map all slots."""
        return memoryview(mmap.mmap(self._fd, self._total))

    def close(self) -> None:
        """Let go of the descriptor; maps stay valid."""
        os.close(self._fd)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": reduction.DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _fd=state["_fd"].detach())


class StartupErrors:
    """Where starting workers write their errors until their own code runs and takes the real
    stderr (`worker.work`). One that starts while the parent is killed has only a traceback of the
    standard library to tell, which must not reach a terminal; of others the text is kept.
    """

    def __init__(self) -> None:
        self._file, self._stderr = os.memfd_create("startup"), os.dup(2)

    def __getstate__(self) -> dict[str, Any]:
        return {"_stderr": reduction.DupFd(self._stderr)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._stderr = state["_stderr"].detach()

    def over(self) -> None:
        """In a worker: from here on its stderr is the real one."""
        os.dup2(self._stderr, 2)
        os.close(self._stderr)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """What is started meanwhile inherits the file as its stderr."""
        os.dup2(self._file, 2)
        try:
            yield
        finally:
            os.dup2(self._stderr, 2)

    def last(self) -> str:
        """The last line that was written, or nothing."""
        size = os.fstat(self._file).st_size
        lines = os.pread(self._file, size, 0).decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """Let go of both descriptors."""
        os.close(self._file)
        os.close(self._stderr)


@dataclass
class _Worker:
    process: Any
    pipe: connection.Connection
    tasks: list[int] = field(default_factory=list)


class Pool:
    """`workers` processes at work on one preparation. A context manager."""

    def __init__(
        self,
        prep: Preparation,
        root: Path,
        containers: list[Container],
        workers: int,
        slot_bytes: int,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._memory = SharedMemory(workers * SLOTS_A_WORKER, slot_bytes)
        self._slots = self._memory.open()
        self._free = list(range(workers * SLOTS_A_WORKER))
        self._workers = []
        # Workers inherit the mask: what these mean is decided by the parent alone. The tracker,
        # which the first one would start, unblocks them
        resource_tracker.ensure_running()
        asked = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, asked)
        self._startup = StartupErrors()
        try:
            for _ in range(workers):
                ours, theirs = context.Pipe()
                args = (theirs, self._memory, prep, root, containers, self._startup)
                process = context.Process(target=work, args=args, daemon=True)
                with self._startup.collected():
                    process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))
        except BaseException:
            for worker in self._workers:
                worker.process.kill()
            self._startup.close()
            raise
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
        for worker in self._workers:
            if kind is not None:
                worker.process.kill()
            worker.process.join()
        self._memory.close()
        self._startup.close()

    def dismiss(self) -> None:
        """No more tasks: workers end, which takes them a while."""
        for worker in self._workers:
            worker.pipe.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Chunk, memoryview]]:
        """Each chunk with its payloads, in the order of tasks, numbered from 0.

        The payloads are valid until the next chunk is asked for.
        """
        waiting = iter(tasks)
        slot_of: dict[int, int] = {}
        done: dict[int, Chunk] = {}
        turn = 0
        more = True
        while True:
            more = more and self._hand_out(waiting, slot_of)
            if not slot_of:
                return
            if turn not in done:
                for chunk in self._collect():
                    done[chunk.number] = chunk
                continue
            chunk, slot = done.pop(turn), slot_of.pop(turn)
            start = slot * self._memory.slot_bytes
            yield chunk, self._slots[start : start + self._memory.slot_bytes]
            self._free.append(slot)
            turn += 1

    def _hand_out(self, waiting: Iterator[Task], slot_of: dict[int, int]) -> bool:
        """Give tasks to workers that have room; False when none is left."""
        while self._free:
            worker = min(self._workers, key=lambda w: len(w.tasks))
            if len(worker.tasks) >= TASKS_A_WORKER:
                return True
            task = next(waiting, None)
            if task is None:
                return False
            slot = self._free.pop()
            slot_of[task.number] = slot
            worker.tasks.append(task.number)
            self._feed(task, slot)
            try:
                worker.pipe.send((task, slot))
            except OSError as error:
                raise self._died(worker) from error
        return True

    def _feed(self, task: Task, slot: int) -> None:
        """Put what the parent has read into the slot, where the answer will lie later."""
        if task.data is None or sum(map(len, task.data)) > self._memory.slot_bytes:
            return
        at = slot * self._memory.slot_bytes
        task.sizes = [len(data) for data in task.data]
        for data in task.data:
            self._slots[at : at + len(data)] = data
            at += len(data)
        task.data = None

    def _collect(self) -> Iterator[Chunk]:
        """Wait for answers; WorkerError when a worker died or met an error."""
        pipes = {worker.pipe: worker for worker in self._workers}
        sentinels = {worker.process.sentinel: worker for worker in self._workers}
        ready = connection.wait([*pipes, *sentinels])
        for pipe in ready:
            if (worker := pipes.get(pipe)) is None:  # type: ignore[call-overload]
                continue
            try:
                answer = worker.pipe.recv()
            except (EOFError, OSError) as error:
                raise self._died(worker) from error
            if isinstance(answer, str):
                raise WorkerError(f"a worker process met an error: {answer}")
            worker.tasks.remove(answer.number)
            yield answer
        for sentinel in ready:
            if (worker := sentinels.get(sentinel)) is not None:
                raise self._died(worker)

    def _died(self, worker: _Worker) -> WorkerError:
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        how = f"exit status {code}"
        if code is not None and code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        elif said := self._startup.last():
            how += f": {said}"
        hint = (
            "; SIGKILL often means that memory ran out: try fewer --workers" if code == -9 else ""
        )
        return WorkerError(
            f"worker process {worker.process.pid} ended before its work was done ({how}){hint}. "
            "Nothing is lost but time: run the same command again"
        )
