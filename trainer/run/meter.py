"""Steps and waits in; loss, speed and memory since the last look out."""

import resource
import time
from collections.abc import Iterator
from typing import Any

import torch

from trainer.data.loader import Batch
from trainer.process.world import World
from trainer.run.counters import Counters


class Meter:
    """What is measured between two rows of the log."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.restart()

    def restart(self) -> None:
        """Leave out what was since the last row."""
        self._began, self._waited = time.monotonic(), 0.0
        self._images = 0

    @property
    def age(self) -> float:
        """Seconds since the last row."""
        return time.monotonic() - self._began

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time until each is there counts as waiting."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def add(self, images: int) -> None:
        """One step over `images`, of all processes."""
        self._images += images

    def row(self, counters: Counters) -> dict[str, Any]:
        """Everything since the last row, which ends here. `wait` is a share of the time."""
        seconds = max(self.age, 1e-9)
        loss = float(self._world.sum(torch.tensor(counters.loss, dtype=torch.float64)))
        found = {
            "loss": loss / counters.counted if counters.counted else None,
            "images_per_s": round(self._images / seconds, 1),
            "wait": round(self._waited / seconds, 4),
            "memory_mb": round(self._peak_memory() / 1e6, 1),
        }
        self.restart()
        return found

    def _peak_memory(self) -> int:
        """Bytes that this process took at most, of the GPU's memory where it has one."""
        if self._world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._world.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
