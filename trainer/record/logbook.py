"""Writes the figures of a run to its log.jsonl, and to a tracker where one is asked for."""

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.record.trackers import Tracker

_KEPT = ("kind", "split", "step", "epoch", "samples")  # not curves


class Logbook:
    """One run's log. `writes`: false for all processes of a run but the first."""

    def __init__(self, directory: Path, *, writes: bool, tracker: Tracker | None) -> None:
        self._path, self._writes, self._tracker = directory / "log.jsonl", writes, tracker
        if writes:
            self._end_line()

    def row(self, kind: str, **figures: Any) -> None:
        """Append one line; a figure that is not finite is null."""
        if not self._writes:
            return
        row: dict[str, Any] = {"time": round(time.time(), 3), "kind": kind}
        row |= {key: None if _infinite(value) else value for key, value in figures.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._tracker is not None and kind in ("train", "eval"):
            self._tracker.add(_curves(row), row["step"])

    def close(self) -> None:
        """Flush what is still to be written."""
        if self._tracker is not None:
            self._tracker.close()

    def _end_line(self) -> None:
        """A kill may have cut the last line short."""
        with suppress(FileNotFoundError), self._path.open("rb+") as file:
            if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")


def _curves(row: dict[str, Any]) -> dict[str, float]:
    """Figures by the names of their curves: train/loss, calib/top1."""
    where = row.get("split", row["kind"])
    return {
        f"{where}/{key}": value
        for key, value in row.items()
        if key not in (*_KEPT, "time") and isinstance(value, int | float)
    }


def _infinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
