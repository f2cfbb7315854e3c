"""One chunk of samples in; their payloads, grouped by plane, and statistics out.

Runs in worker processes, which share a block of memory with the parent: payloads go
there, only sizes and sums are pickled.
"""

import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import threadpoolctl
from numpy.typing import NDArray

from pipeline.codec import Payloads, decode_whole, encoder
from pipeline.errors import BadImageError, SpectralError, describe
from pipeline.imaging import load
from pipeline.kernels.moments import add_moments
from pipeline.options import Preparation
from pipeline.sources import Source
from pipeline.splitter import Splitter


@dataclass(frozen=True)
class Task:
    """Samples to work on. `measured`: whether to measure the PSNR of each, (m,)."""

    number: int
    ids: list[str]
    measured: list[bool]


@dataclass
class Moments:
    """Exact sums over the samples of a chunk; they add up in any order (N planes, C channels)."""

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
    """Squared errors of the measured samples: of the rebuilt image, and plane by plane (N,)."""

    values: int
    image: float
    planes: NDArray[np.float64]

    def add(self, other: "Errors") -> None:
        """Add `other` to this. Float sums: the order must be that of the samples."""
        self.values += other.values
        self.image += other.image
        self.planes += other.planes


@dataclass
class Chunk:
    """What came of a task. Lists and `shapes` (m, 2 as width, height of the source) have a
    place for every sample; `sizes` (N, stored) and `stored_shapes` for the stored ones.
    """

    number: int
    reasons: list[str | None]
    shapes: NDArray[np.int32]
    sizes: NDArray[np.uint32]
    stored_shapes: NDArray[np.int32]
    moments: Moments
    errors: Errors
    measured: int
    inline: bytes | None = None


class Processor:
    """Everything a worker needs for one preparation."""

    def __init__(self, prep: Preparation, source: Source) -> None:
        self.prep, self.source = prep, source
        self.encode, self.payloads = encoder(prep), Payloads(prep.splits)
        self.splitter = Splitter(prep) if prep.splits > 1 else None
        self.planes = self.splitter.empty() if self.splitter else None

    def process(self, task: Task) -> Chunk:
        """The chunk; its payloads lie in `payloads` until the next call."""
        prep = self.prep
        self.payloads.clear()
        moments = Moments.zero(prep)
        errors = Errors(0, 0.0, np.zeros(prep.splits))
        shapes = np.zeros((len(task.ids), 2), np.int32)
        reasons: list[str | None] = []
        stored_shapes = []
        count = 0
        for i, (sample, measured) in enumerate(zip(task.ids, task.measured, strict=True)):
            try:
                pixels, shapes[i] = load(self.source.read(sample), prep)
            except BadImageError as error:
                reasons.append(str(error))
                continue
            reasons.append(None)
            stored_shapes.append(
                pixels.shape[:2] if self.splitter is None else prep.plane_shape[1:]
            )
            self._store(pixels, moments)
            if measured:
                errors.add(self._measure(pixels))
                count += 1
        sizes = np.ascontiguousarray(self.payloads.sizes().T)
        shape_table = np.array(stored_shapes, np.int32).reshape(-1, 2)
        return Chunk(task.number, reasons, shapes, sizes, shape_table, moments, errors, count)

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
            stored = decode_whole(self.payloads.last(), self.prep.codec, shape)
            error = _squares(stored.astype(np.float32) - pixels)
            return Errors(pixels.size, error, np.array([error]))
        rebuilt = self.splitter.rebuild(self.planes)
        planes = self.splitter.dequantise(self.planes) - self.splitter.coefficients(pixels)
        return Errors(
            pixels.size,
            _squares(rebuilt.astype(np.float32) - pixels),
            np.array([_squares(plane) for plane in planes]),
        )


def _channels_first(pixels: NDArray[np.uint8]) -> tuple[int, int, int]:
    h, w, c = pixels.shape
    return c, h, w


def _squares(values: NDArray[np.float32]) -> float:
    # Not a dot product: BLAS would give sums that depend on the number of threads.
    return float(np.sum(values * values, dtype=np.float64))


def work(connection: Connection, memory: Any, prep: Preparation, source: Source) -> None:
    """The main loop of a worker: (task, slot) in, Chunk or an error message out.

    memory: SharedMemory of the pool. Ends when the parent closes its end or dies.
    """
    threadpoolctl.threadpool_limits(1)  # workers are the parallelism; BLAS threads would fight
    processor = Processor(prep, source)
    slots = memory.open()
    while True:
        try:
            task, slot = connection.recv()
        except (EOFError, OSError):
            return
        try:
            chunk, payloads = processor.process(task), processor.payloads
            room = slots[slot * memory.slot_bytes : (slot + 1) * memory.slot_bytes]
            if payloads.total <= len(room):
                payloads.group(np.frombuffer(room, np.uint8))
            else:
                blob = np.empty(payloads.total, np.uint8)
                payloads.group(blob)
                chunk.inline = blob.tobytes()
            answer: Chunk | str = chunk
        except OSError as error:
            answer = describe(error)
        except (SpectralError, MemoryError) as error:
            answer = str(error) or "out of memory: try fewer --workers"
        except Exception:
            answer = "our own bug in a worker, please report it:\n" + traceback.format_exc()
        try:
            connection.send(answer)
        except OSError:
            return
