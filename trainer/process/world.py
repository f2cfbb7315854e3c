"""The processes that train one network together, as torchrun started them.

Each takes its share of every global batch, so that what is trained does not depend on how
many there are. Without torchrun's variables it is one process, and nothing is set up.
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import ConfigError
from trainer.process.stop import ends_at_once

_SET_PDEATHSIG, _GET_PDEATHSIG = 1, 2  # of prctl(2)
_LONG = timedelta(days=2)
GROUP = 4  # neighbours in a batch stay in one process: they may be mixed with each other


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes. Collective methods have to be called by all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The part of `count` samples for this process: whole groups of four where that is fair."""
        unit = GROUP if count >= GROUP * self.size else 1
        bounds = [count * rank // self.size // unit * unit for rank in range(self.size)]
        return slice(*[*bounds, count][self.rank : self.rank + 2])

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise over all processes."""
        if self.size > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values

    def highest(self, value: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared.item())

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all processes have come here."""
        self.highest(0)

    def wait_long(self) -> None:
        """The same where one process may work alone for long: other collectives give up after 10
        minutes (NCCL) or 30 (gloo), as if a process were lost. One that is takes the others along.
        """
        if self.size > 1:
            group: Any = dist.new_group(backend="gloo", timeout=_LONG)
            dist.barrier(group)
            dist.destroy_process_group(group)


def launched() -> bool:
    """Whether torchrun, or our own launcher, started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def _end_with_parent() -> None:
    """Save and stop when torchrun is gone, which would leave its processes behind; those of our
    own launcher are tied to it already.
    """
    libc, signals = ctypes.CDLL(None), ctypes.c_int()
    if libc.prctl(_GET_PDEATHSIG, ctypes.byref(signals)) == 0 and not signals.value:
        libc.prctl(_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes of this job, connected: NCCL between GPUs, gloo between CPUs."""
    if not launched():
        yield World(0, 1, device)
        return
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is set, but not all of torchrun's variables are ({error}): start it by "
            "torchrun, or unset WORLD_SIZE"
        ) from error
    if size == 1:  # as some clusters set them for every process
        yield World(0, 1, device)
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ConfigError(
                f"WORLD_SIZE is {size}, but {name} is not set: start it by torchrun, or unset "
                "WORLD_SIZE"
            )
    _end_with_parent()
    with ends_at_once():  # the others may never come
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
    yield World(rank, size, device)
    dist.destroy_process_group()  # not after an error: it would wait for the others
    # gloo's threads, which may live on, still let go of the tensors of the last sum: that takes
    # Python's lock, and a thread that asks for it while Python ends aborts the process
    time.sleep(0.1)
