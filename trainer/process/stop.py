"""Turns the signals that Slurm sends before it takes a node into a request to save."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import StoppedError

_INTERRUPTED = 130  # exit status after Ctrl-C


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
    for number in StoppedError.signals:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(StoppedError.exit_status)


@contextmanager
def ends_at_once() -> Iterator[None]:
    """While the block waits somewhere in C, where no handler of Python's runs, signals that ask to
    end end the process, with their status: a thread is told of them as they come.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        while number := os.read(reader, 1)[0]:
            if number in (*StoppedError.signals, signal.SIGINT):
                name = signal.Signals(number).name
                os.write(2, f"Error: stopped by {name}, nothing was to be saved\n".encode())
                os._exit(_INTERRUPTED if number == signal.SIGINT else StoppedError.exit_status)

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take note of signals in place of dying, until the block ends."""
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in StoppedError.signals}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
