"""Progress of long work, on standard error: a bar on a terminal, plain lines otherwise; a word
where there is none.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

Advance = Callable[[int, str], None]
ProgressBar = Callable[[str, int, str], AbstractContextManager[Advance]]  # as `progress` is
PLAIN_EVERY = 10.0  # seconds between plain lines
PATIENCE = 60.0  # seconds until `Watch` says something
log = logging.getLogger(__name__)


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Yields advance(count, note): `count` more of `total` are done, `note` is shown.

    total: 0 where it is not known.
    """
    with _bar(what, total, unit) if sys.stderr.isatty() else _lines(what, total, unit) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    from rich import progress as rich
    from rich.console import Console
    from rich.table import Column
    from rich.text import Text

    class Note(rich.ProgressColumn):
        """The column that is cut where a terminal is narrow, after the bar."""

        def render(self, task: rich.Task) -> Text:
            return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")

    whole = Column(no_wrap=True)
    columns = (
        rich.TextColumn("{task.description}", table_column=whole),
        rich.BarColumn(10),
        rich.TextColumn("{task.completed}/{task.total} {task.fields[rate]}", table_column=whole),
        rich.TimeRemainingColumn(compact=True, table_column=whole),
        Note(),
    )
    started = time.monotonic()
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=total or None, rate="", note="")

        def advance(count: int, note: str = "") -> None:
            bars.update(task, advance=count, note=note)
            done = bars.tasks[0].completed
            rate = done / max(time.monotonic() - started, 1e-9)
            bars.update(task, rate=f"{rate:,.0f} {unit}/s")

        yield advance


@contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Advance]:
    started = last = time.monotonic()
    done = 0
    of = f"/{total}" if total else ""

    def line(note: str) -> str:
        seconds = max(time.monotonic() - started, 1e-9)
        text = f"{what}: {done}{of} {unit}, {done / seconds:,.0f} {unit}/s"
        if total:
            text += f", {(total - done) * seconds / max(done, 1):.0f} s left"
        return f"{text}, {note}" if note else text

    def advance(count: int, note: str = "") -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= PLAIN_EVERY:
            last = time.monotonic()
            _say(line(note))

    yield advance
    _say(f"{what}: {done}{of} {unit} in {time.monotonic() - started:.1f} s")


class Watch:
    """Says what is being done if it takes long: a disk or network that is gone gives no error, and
    whoever reads from it waits. A context manager.
    """

    def __init__(self) -> None:
        self._what, self._since, self._due = "", 0.0, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def begin(self, what: str) -> None:
        """What is done from now on; nothing, if it is empty."""
        self._what, self._since, self._due = what, time.monotonic(), PATIENCE

    def _look(self) -> None:
        while not self._over.wait(min(1.0, PATIENCE / 4)):
            what, seconds = self._what, time.monotonic() - self._since
            if what and seconds > self._due:
                self._due = 2 * seconds
                log.warning(
                    "%s has taken %.0f s so far: is its disk slow, or gone, or the network?",
                    what,
                    seconds,
                )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # nobody reads on, or its disk is full: no reason to end work of days
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as long as we run


def readable(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
