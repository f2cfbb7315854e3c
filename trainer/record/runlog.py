"""log.jsonl of a run in; its valid rows, or how far the run is, out.

A resumed run repeats what it did after its last checkpoint: a row of kind `start` says from
which step, and the rows beyond that step are void. A kill cuts a line short: what is no JSON
is passed over.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "log.jsonl"
Row = dict[str, Any]
_TAIL = 1 << 20  # bytes: half a day of rows, read and searched in a millisecond
_HEAD = 1 << 12
_RECENT = 20  # lines, which hold the last row of kind `train`


def parsed(lines: Iterable[bytes]) -> Iterator[Row]:
    """The rows among the lines that are whole."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # also of bytes that are no text
            continue
        if isinstance(row, dict) and isinstance(row.get("kind"), str):
            yield row


def valid_rows(path: Path) -> list[Row]:
    """All rows that count, in order; rows without a step get that of the last training row."""
    kept: list[Row] = []
    reached = -1.0
    with path.open("rb") as file:
        for row in parsed(file):
            row["step"] = step = _number(row, "step", max(reached, 0.0))
            trained = row["kind"] == "train"
            if row["kind"] == "start" or (trained and step <= reached):
                kept = [old for old in kept if not _void(old, step, repeated=trained)]
            if row["kind"] in ("start", "train"):
                reached = step
            kept.append(row)
    return kept


def _void(row: Row, step: float, repeated: bool) -> bool:
    """repeated: the step itself is told again, as by a run that logs no `start`."""
    return bool(row["step"] > step or (repeated and row["kind"] == "train" and row["step"] == step))


def _number(row: Row, key: str, default: float) -> float:
    value = row.get(key)
    return value if isinstance(value, int | float) else default


@dataclass(kw_only=True)
class Status:
    """How far a run is, as its log tells; None where it does not."""

    step: float | None = None
    steps: float | None = None
    epoch: float | None = None
    epochs: float | None = None
    loss: float | None = None
    images_per_s: float | None = None
    first: tuple[float, float] | None = None  # time and step since which it trains
    time: float | None = None  # of the last row
    top1: dict[str, dict[float, float]] = field(default_factory=dict)  # of split, at step

    def add(self, row: Row) -> None:
        """Take in the next row of the log."""
        self.time = _get(row, "time") or self.time
        if row["kind"] == "start":
            self._start(row)
        elif row["kind"] == "train":
            self._train(row)
        elif row["kind"] == "eval" and (top1 := _get(row, "top1")) is not None:
            at = _number(row, "step", _number(row, "epoch", 0.0))
            self.top1.setdefault(str(row.get("split")), {}).setdefault(at, top1)

    def _start(self, row: Row) -> None:
        self.step = _number(row, "step", 0.0)
        self.steps = _get(row, "steps") or self.steps
        self.epochs = _get(row, "epochs") or self.epochs
        self.first = None if self.time is None else (self.time, self.step)
        for split, found in self.top1.items():
            self.top1[split] = {at: top1 for at, top1 in found.items() if at <= self.step}

    def _train(self, row: Row) -> None:
        for key in ("step", "epoch", "loss", "images_per_s"):
            setattr(self, key, _number(row, key, getattr(self, key)))
        if self.first is None and self.time is not None:
            self.first = (self.time, self.step or 0.0)

    def best(self, split: str) -> float | None:
        """The highest accuracy so far."""
        return max(self.top1.get(split, {}).values(), default=None)

    @property
    def seconds_left(self) -> float | None:
        """At the mean rate since the run was started or resumed."""
        if not (self.first and self.time and self.step and self.steps):
            return None
        seconds, steps = self.time - self.first[0], self.step - self.first[1]
        return seconds / steps * (self.steps - self.step) if steps > 0 else None


def _get(row: Row, key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None


def status(path: Path) -> Status:
    """How far a run is, from the beginning and the end of its log alone. OSError if unreadable."""
    found = Status()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD).splitlines() if size > _TAIL else []
        file.seek(max(0, size - _TAIL))
        lines = file.read(_TAIL).splitlines()
    rare = (line for line in lines[:-_RECENT] if b"eval" in line or b"start" in line)
    for row in parsed((*head, *rare, *lines[-_RECENT:])):
        found.add(row)
    return found


class Follower:
    """The status of a run that is under way; each look reads what is new in its log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self.status = status(path) if self._offset else Status()

    def look(self) -> Status:
        """The status as it is now."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._offset += len(whole) + len(newline)
            for row in parsed(whole.splitlines()):
                self.status.add(row)
        return self.status
