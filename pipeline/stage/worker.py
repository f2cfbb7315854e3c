"""One chunk of samples in; their payloads, plane by plane, and statistics out.

Runs in worker processes, which share a block of memory with the parent: payloads go
there, only sizes and sums are pickled.
"""

import ctypes
import os
import queue
import resource
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from numpy.typing import NDArray

from pipeline.errors import BadImageError, SpectralError, describe
from pipeline.format.codec import Payloads, decode_whole, encoder
from pipeline.planes.imaging import load
from pipeline.planes.kernels.moments import add_moments
from pipeline.planes.splitter import Splitter
from pipeline.preparation import Preparation
from pipeline.sources.index import Container, Place
from pipeline.sources.reading import Reader
from pipeline.stage.shared import BETWEEN, DECODING, READING, Step

ERROR_UNIT = 1 << 20
OUT_OF_MEMORY = 70  # exit status of a worker that could not get what an image needs
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
Inbox = queue.SimpleQueue["tuple[Task, int] | MemoryError | None"]


@dataclass
class Task:
    """Samples to work on. `measured`: whether to measure the PSNR of each. train: so many of them,
    the first ones, belong to the split train. data: the bytes of each, where the parent has read
    them; they travel in shared memory where there is room, and `sizes` says how long each is.
    refused: reasons of samples that are to be left out, by position. trial: positions to try one
    by one before the work begins, as it has ended badly before. ids: for people.
    """

    number: int
    places: list[Place]
    measured: list[bool]
    train: int
    data: list[bytes] | None = None
    sizes: list[int] | None = None
    refused: dict[int, str] = field(default_factory=dict)
    trial: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


@dataclass
class Moments:
    """Exact sums over samples; they add up in any order (N planes, C channels)."""

    pixels: int
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    clipped: NDArray[np.int64]

    @classmethod
    def zero(cls, prep: Preparation) -> "Moments":
        """Nothing added up yet."""
        n, c = prep.splits, prep.channels
        return cls(
            0, np.zeros((n, c), np.int64), np.zeros((n, c, c), np.int64), np.zeros(n, np.int64)
        )

    def add(self, other: "Moments") -> None:
        """Add `other` to this."""
        self.pixels += other.pixels
        self.first += other.first
        self.second += other.second
        self.clipped += other.clipped


@dataclass
class Errors:
    """Squared errors of the measured samples: of the rebuilt image, and plane by plane (N,).

    Integers, in units of 1/ERROR_UNIT squared grey levels, so that they add up in any order.
    """

    samples: int
    values: int
    image: int
    planes: NDArray[np.int64]

    @classmethod
    def zero(cls, prep: Preparation) -> "Errors":
        """Nothing measured yet."""
        return cls(0, 0, 0, np.zeros(prep.splits, np.int64))

    def add(self, other: "Errors") -> None:
        """Add `other` to this."""
        self.samples += other.samples
        self.values += other.values
        self.image += other.image
        self.planes += other.planes


@dataclass
class Chunk:
    """What came of a task. Lists and `shapes` (m, 2 as width, height of the source) have a
    place for every sample; `sizes` (N, stored) and `stored_shapes` for the stored ones.

    The payloads of plane k start at k/N of the block of memory that was lent, or of `inline`.
    """

    number: int
    reasons: list[str | None]
    shapes: NDArray[np.int32]
    sizes: NDArray[np.uint32]
    stored_shapes: NDArray[np.int32]
    train: Moments
    rest: Moments
    errors: Errors
    inline: bytes | None = None


class Processor:
    """Everything a worker needs for one preparation. at: is told of each step."""

    def __init__(self, prep: Preparation, reader: Reader, at: Callable[[Step], None]) -> None:
        self.prep, self.reader, self.at = prep, reader, at
        self.encode, self.payloads = encoder(prep), Payloads(prep.splits)
        self.splitter = Splitter(prep) if prep.splits > 1 else None
        self.planes = self.splitter.empty() if self.splitter else None

    def warm_up(self) -> None:
        """Load all compiled code now, while other workers do, not with the first task."""
        prep = self.prep
        blank = np.zeros((prep.size, prep.size, prep.channels), np.uint8)
        blank.flags.writeable = False  # as those of images are: numba tells them apart
        self._store(blank, Moments.zero(prep))

    def process(self, task: Task, room: NDArray[np.uint8]) -> Chunk:
        """The chunk; its payloads lie in `room` if they fit."""
        for i in task.trial:
            self._chunk(task, room, [i])
        return self._chunk(task, room, range(len(task.places)))

    def _chunk(self, task: Task, room: NDArray[np.uint8], chosen: Sequence[int]) -> Chunk:
        prep = self.prep
        self.payloads.start(room)
        train, rest, errors = Moments.zero(prep), Moments.zero(prep), Errors.zero(prep)
        shapes = np.zeros((len(task.places), 2), np.int32)
        reasons: list[str | None] = []
        stored_shapes = []
        for i in chosen:
            if i in task.refused:
                reasons.append(task.refused[i])
                continue
            place = task.places[i]
            try:
                self.at(Step(task.number, i, READING))
                data = self.reader.read(place) if task.data is None else task.data[i]
                self.at(Step(task.number, i, DECODING))
                pixels, shapes[i] = load(data, prep, self.reader.containers[place.file].shape)
                self._store(pixels, train if i < task.train else rest)
            except BadImageError as error:
                reasons.append(str(error))
                continue
            reasons.append(None)
            stored_shapes.append(
                pixels.shape[:2] if self.splitter is None else prep.plane_shape[1:]
            )
            if task.measured[i]:
                errors.add(self._measure(pixels))
        self.at(Step(task.number, 0, BETWEEN))
        sizes = np.ascontiguousarray(self.payloads.sizes().T)
        shape_table = np.array(stored_shapes, np.int32).reshape(-1, 2)
        inline = None if self.payloads.lent else self.payloads.rows.tobytes()
        return Chunk(task.number, reasons, shapes, sizes, shape_table, train, rest, errors, inline)

    def _store(self, pixels: NDArray[np.uint8], moments: Moments) -> None:
        planes: NDArray[Any]
        if self.splitter is None or self.planes is None:
            self.encode(pixels, self.payloads)
            planes = pixels.transpose(2, 0, 1).reshape(1, pixels.shape[2], -1)
        else:
            self.splitter.split(pixels, self.planes, moments.clipped)
            self.encode(self.planes, self.payloads)
            planes = self.planes.reshape(self.prep.splits, self.prep.channels, -1)
        add_moments(planes, moments.first, moments.second)
        moments.pixels += planes.shape[2]

    def _measure(self, pixels: NDArray[np.uint8]) -> Errors:
        if self.splitter is None or self.planes is None:
            shape = _channels_first(pixels)
            stored = decode_whole(self.payloads.last(0), self.prep.codec, shape)
            error = _squares(stored.astype(np.float32) - pixels)
            return Errors(1, pixels.size, error, np.array([error]))
        rebuilt = self.splitter.rebuild(self.planes)
        planes = self.splitter.dequantise(self.planes) - self.splitter.coefficients(pixels)
        return Errors(
            1,
            pixels.size,
            _squares(rebuilt.astype(np.float32) - pixels),
            np.array([_squares(plane) for plane in planes]),
        )


def _channels_first(pixels: NDArray[np.uint8]) -> tuple[int, int, int]:
    h, w, c = pixels.shape
    return c, h, w


def _squares(values: NDArray[np.float32]) -> int:
    # Not a dot product: BLAS would give sums that depend on the number of threads.
    return round(float(np.sum(values * values, dtype=np.float64)) * ERROR_UNIT)


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
    """The main loop of a worker: None when it has started, then (task, slot) in, Chunk out; in
    place of either an error message.

    seat: its number among the workers. memory, startup: SharedMemory and StartupErrors of the pool.
    most_bytes: of memory beyond what it has once it has started. Ends when the parent closes its
    end or dies.
    """
    startup.over()
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)  # also when it hangs
    threadpoolctl.threadpool_limits(1)  # workers are the parallelism; BLAS threads would fight
    shared = memory.open()

    def at(step: Step) -> None:
        shared.steps[seat] = step.packed()

    def start() -> Processor:
        processor = Processor(prep, Reader(root, containers), at)
        processor.warm_up()
        return processor

    try:
        started = _attempt(start)
    except MemoryError as error:
        started = f"out of memory ({error or 'no reason given'}): try fewer --workers"
    try:
        connection.send(started if isinstance(started, str) else None)
        if not isinstance(started, str):
            _limit_memory(most_bytes)
            _serve(connection, started, shared)
    except MemoryError:  # a process that has met it is not to be used further
        os._exit(OUT_OF_MEMORY)
    except OSError:  # the parent is gone
        return


def _serve(connection: Connection, processor: Processor, shared: Any) -> None:
    """Tasks in, answers out, until there are no more."""
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    while (received := inbox.get()) is not None:
        if isinstance(received, MemoryError):
            raise received
        task, slot = received
        room = shared.slot(slot)
        task.data = _fed(task, room)
        do = partial(processor.process, task, np.frombuffer(room, np.uint8))
        connection.send(_attempt(do))


def _attempt(do: Callable[[], Any]) -> Any | str:
    """What it returns, or what to tell of its error. A MemoryError is not caught."""
    try:
        return do()
    except MemoryError:
        raise
    except OSError as error:
        return describe(error)
    except SpectralError as error:
        return str(error)
    except Exception:
        return "our own bug in a worker, please report it:\n" + traceback.format_exc()


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


def _fed(task: Task, room: memoryview) -> list[bytes] | None:
    """What the parent has read, out of shared memory."""
    if task.sizes is None:
        return task.data
    ends = list(accumulate(task.sizes))
    return [bytes(room[end - size : end]) for end, size in zip(ends, task.sizes, strict=True)]
