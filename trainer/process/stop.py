"""Turns SIGTERM and SIGUSR1, which Slurm sends before it takes a node, into a request to save."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import StoppedError

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """False until one of the signals came; then its name."""

    def __init__(self) -> None:
        self.name = ""

    def __bool__(self) -> bool:
        return bool(self.name)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler: only take note, whoever trains looks between two steps."""
        self.name = signal.Signals(number).name


def leave_when_asked() -> None:
    """Until there is something to save, the signals end the process at once, with their status."""
    for number in _SIGNALS:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(StoppedError.exit_status)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take note of signals in place of dying, until the block ends."""
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
