"""What worker processes and their parent share: memory for payloads, how far each worker is, and a
place for the errors of those that are still starting.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BETWEEN, READING, DECODING = range(3)  # what a worker does with an image


class Step(NamedTuple):
    """Where a worker is: in which task, at which of its images, and what it does with that."""

    task: int
    image: int
    doing: int

    def packed(self) -> int:
        """As one number, which is written at once."""
        return (self.task << 32) | (self.image << 2) | self.doing

    @classmethod
    def unpacked(cls, number: int) -> "Step":
        """The inverse of `packed`."""
        return cls(number >> 32, (number >> 2) & ((1 << 30) - 1), number & 3)


NOWHERE = Step(0, 0, BETWEEN)


class SharedMemory:
    """Anonymous memory that workers map through a file descriptor, so /dev/shm may be small."""

    def __init__(self, workers: int, slots: int, slot_bytes: int) -> None:
        self.workers, self.slot_bytes = workers, slot_bytes
        self._head = -(-8 * workers // mmap.PAGESIZE) * mmap.PAGESIZE
        self._total = self._head + slots * slot_bytes
        self._fd = os.memfd_create("spectral")
        os.ftruncate(self._fd, self._total)

    def open(self) -> "Mapped":
        """Map it."""
        whole = memoryview(mmap.mmap(self._fd, self._total))
        steps = np.frombuffer(whole[: 8 * self.workers], np.int64)
        return Mapped(steps, whole[self._head :], self.slot_bytes)

    def close(self) -> None:
        """Let go of the descriptor; maps stay valid."""
        os.close(self._fd)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": reduction.DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _fd=state["_fd"].detach())


class Mapped(NamedTuple):
    """Shared memory in one process. steps: a packed `Step` of each worker."""

    steps: NDArray[np.int64]
    slots: memoryview
    slot_bytes: int

    def slot(self, number: int) -> memoryview:
        """The room of one task."""
        return self.slots[number * self.slot_bytes : (number + 1) * self.slot_bytes]


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
