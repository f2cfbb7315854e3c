"""The jobs of a queue in; a live table on a terminal, else a line now and then, out."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from trainer.jobs.queue import Entry, State, Watch
from trainer.reports.report import duration, figures, of_total

REFRESH = 1.0  # seconds between two looks at the logs
LINE_EVERY = 30.0  # seconds between two lines of one run, where there is no terminal
_FRAME = 7  # lines of a terminal that the table needs beside its rows, and the prompt
_COLOURS = {State.RUNNING: "cyan", State.FAILED: "red", State.FINISHED: "green"}


def watch(entries: list[Entry]) -> Watch:
    """What suits standard output."""
    return LiveTable(entries) if sys.stdout.isatty() else Lines(entries)


class _Lasting(Console):
    """Falls silent when whoever read it has gone (`… | head`): no reason to end work of days."""

    def on_broken_pipe(self) -> None:
        """In place of rich's own, which ends the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Looking(Watch):
    """Looks at the logs of running jobs, but not at every turn of the queue."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.console = _Lasting(highlight=False, markup=False, soft_wrap=True)
        self._looked = 0.0

    def changed(self, entry: Entry) -> None:
        """Say it."""
        entry.log.look()
        self.console.print(_change(entry))

    def look(self) -> None:
        """Read what is new in the logs, now and then."""
        if time.monotonic() - self._looked < REFRESH:
            return
        self._looked = time.monotonic()
        for entry in self.entries:
            if entry.state is State.RUNNING:
                entry.log.look()
        self.show()

    def show(self) -> None:
        """Tell what was read."""


class Lines(_Looking):
    """One line whenever a job starts, ends, or has finished an epoch."""

    def __init__(self, entries: list[Entry]) -> None:
        super().__init__(entries)
        self._said: dict[Path, tuple[float, int]] = {}  # run: when, and of which epoch

    def show(self) -> None:
        """A line of each run that has finished an epoch since its last one."""
        now = time.monotonic()
        for entry in self.entries:
            epoch = int(entry.log.status.epoch or 0)
            when, before = self._said.setdefault(entry.job.directory, (-LINE_EVERY, epoch))
            if entry.state is State.RUNNING and epoch > before and now - when >= LINE_EVERY:
                self._said[entry.job.directory] = now, epoch
                self.console.print(f"shard {entry.job.shard}: {_progress(entry)}")


def _change(entry: Entry) -> str:
    if entry.state is State.RUNNING:
        return f"shard {entry.job.shard}: started, {entry.job.directory}"
    if entry.state is State.FINISHED:
        return f"{entry.job.directory}: {_result(entry)}"
    return f"shard {entry.job.shard}: {entry.state}" + f": {entry.error}" * bool(entry.error)


def _result(entry: Entry) -> str:
    path = entry.job.directory / "result.json"
    try:
        return figures(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):  # of a job that is no training
        return "finished"


def _progress(entry: Entry) -> str:
    at = entry.log.status
    parts = [f"epoch {of_total(at.epoch, at.epochs)}"]
    parts += [f"loss {at.loss:.4f}"] if at.loss is not None else []
    parts += [f"{at.images_per_s:,.0f} images/s"] if at.images_per_s else []
    best = at.best("calib")
    parts += [f"calib {best:.2%}"] if best is not None else []
    parts += [f"{duration(at.seconds_left)} left"] if at.seconds_left else []
    return ", ".join(parts)


class LiveTable(_Looking):
    """A table of all jobs that renews itself; what does not fit is counted below it."""

    def __init__(self, entries: list[Entry]) -> None:
        super().__init__(entries)
        self._live = Live(console=self.console, auto_refresh=False)
        self._started = time.monotonic()

    def __enter__(self) -> "LiveTable":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.show()
        self._live.stop()

    def changed(self, entry: Entry) -> None:
        """Say it above the table, which shows by itself what has started."""
        entry.log.look()
        if entry.state is not State.RUNNING:
            self.console.print(_change(entry))

    def show(self) -> None:
        """Draw the table again."""
        room = max(1, self.console.size.height - _FRAME)
        self._live.update(self.table(room), refresh=True)

    def table(self, room: int) -> Table:
        """At most `room` rows; what runs or failed comes first where not all fit."""
        order = list(State)
        shown = sorted(self.entries, key=lambda entry: order.index(entry.state))[:room]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, caption=self._caption())
        table.caption_justify, table.padding = "left", (0, 1, 0, 0)
        for name in ("shard", "state", "epoch", "step", "", "loss", "images/s", "calib", "left"):
            justify: Literal["left", "right"] = "left" if name in ("state", "") else "right"
            table.add_column(name, justify=justify, no_wrap=True)
        for entry in sorted(shown, key=self.entries.index):
            table.add_row(*_cells(entry), style=_COLOURS.get(entry.state, ""))
        return table

    def _caption(self) -> str:
        states = [entry.state for entry in self.entries]
        counts = [f"{states.count(state)} {state}" for state in State if state in states]
        return f"{', '.join(counts)}; {duration(time.monotonic() - self._started)}"


def _cells(entry: Entry) -> list[Any]:
    at = entry.log.status
    best = at.best("calib")
    return [
        entry.job.shard,
        str(entry.state),
        of_total(at.epoch, at.epochs),
        of_total(at.step, at.steps),
        ProgressBar(total=at.steps, completed=at.step or 0, width=8) if at.steps else "",
        "–" if at.loss is None else f"{at.loss:.4f}",
        f"{at.images_per_s:,.0f}" if at.images_per_s else "–",
        "–" if best is None else f"{best:.2%}",
        duration(at.seconds_left) if entry.state is State.RUNNING else "",
    ]
