"""A worker process: tasks come in through a pipe, answers go back, payloads into shared memory."""

import ctypes
import os
import queue
import resource
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

from pipeline.errors import SpectralError, describe
from pipeline.preparation import Preparation
from pipeline.sources.index import Container
from pipeline.sources.reading import Reader
from pipeline.stage.messages import Answer, Task
from pipeline.stage.shared import Mapped, Step
from pipeline.stage.work import Processor

OUT_OF_MEMORY = 70  # exit status of a worker that could not get what an image needs
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
Inbox = queue.SimpleQueue[Task | MemoryError | None]


def work(
    connection: Connection,
    seat: int,
    memory: Any,
    prep: Preparation,
    root: Path,
    containers: list[Container],
    startup: Any,
    most_bytes: int,
) -> None:
    """The main loop of a worker: an empty answer when it has started, then one for each task.

    seat: its number among the workers. memory, startup: SharedMemory and StartupErrors of the pool.
    most_bytes: of memory beyond what it has once it has started. Ends when the parent closes its
    end or dies.
    """
    startup.over()
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)  # also when it hangs
    threadpoolctl.threadpool_limits(1)  # workers are the parallelism; BLAS threads would fight
    shared = memory.open()
    started: list[Processor] = []

    def at(step: Step) -> None:
        shared.steps[seat] = step.packed()

    def start() -> Answer:
        processor = Processor(prep, Reader(root, containers), at)
        processor.warm_up()
        started.append(processor)
        return Answer()

    try:
        answer = _attempt(start)
    except MemoryError as error:
        reason = error or "no reason given"
        answer = Answer(error=f"out of memory ({reason}): try fewer --workers")
    try:
        connection.send(answer)
        if started:
            _limit_memory(most_bytes)
            _serve(connection, started[0], shared)
    except MemoryError:  # a process that has met it is not to be used further
        os._exit(OUT_OF_MEMORY)
    except OSError:  # the parent is gone
        return


def _serve(connection: Connection, processor: Processor, shared: Mapped) -> None:
    """Tasks in, answers out, until there are no more."""
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()

    def answer(task: Task) -> Answer:
        slot = shared.slot(task.slot)
        return Answer(processor.process(_with_data(task, slot), np.frombuffer(slot, np.uint8)))

    while (task := inbox.get()) is not None:
        if isinstance(task, MemoryError):
            raise task
        connection.send(_attempt(answer, task))


def _attempt(do: Callable[..., Answer], *args: Any) -> Answer:
    """What it returns, or what to tell of its error. A MemoryError is not caught."""
    try:
        return do(*args)
    except MemoryError:
        raise
    except OSError as error:
        return Answer(error=describe(error))
    except SpectralError as error:
        return Answer(error=str(error))
    except Exception:
        found = traceback.format_exc()
        return Answer(error=f"our own bug in a worker, please report it:\n{found}")


def _limit_memory(more: int) -> None:
    """So many bytes beyond those mapped now: one image must not take the memory of a machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    limits = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))


def _receive(connection: Connection, inbox: Inbox) -> None:
    """Take tasks in at once, then None at the end: a large task and a large answer, both on their
    way, would wait for each other.
    """
    try:
        while True:
            inbox.put(connection.recv())
    except MemoryError as error:
        inbox.put(error)
    except (EOFError, OSError):
        inbox.put(None)


def _with_data(task: Task, slot: memoryview) -> Task:
    """What the parent has read, out of shared memory."""
    if task.sizes is None:
        return task
    ends = accumulate(task.sizes)
    data = [bytes(slot[end - size : end]) for end, size in zip(ends, task.sizes, strict=True)]
    return replace(task, data=data)
