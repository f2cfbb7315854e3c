"""Figures of a run in; lines of its log.jsonl out, and TensorBoard events where asked for."""

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

_KEPT = ("kind", "split", "step", "epoch", "samples")  # not curves


class Logbook:
    """One run's log. `writes`: false for all processes of a run but the first."""

    def __init__(self, directory: Path, *, writes: bool, tensorboard: bool, step: int) -> None:
        self._path, self._writes = directory / "log.jsonl", writes
        self._events: Any = _events(directory, step) if writes and tensorboard else None
        if writes:
            self._end_line()

    def row(self, kind: str, **figures: Any) -> None:
        """Append one line; a figure that is not finite is null."""
        if not self._writes:
            return
        row = {"time": round(time.time(), 3), "kind": kind}
        row |= {key: None if _infinite(value) else value for key, value in figures.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._events is not None and kind in ("train", "eval"):
            self._add_events(row)

    def close(self) -> None:
        """Flush what is still to be written."""
        if self._events is not None:
            self._events.close()

    def _end_line(self) -> None:
        """A kill may have cut the last line short."""
        with suppress(FileNotFoundError), self._path.open("rb+") as file:
            if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")

    def _add_events(self, row: dict[str, Any]) -> None:
        where = row.get("split", row["kind"])
        for key, value in row.items():
            if key not in (*_KEPT, "time") and isinstance(value, int | float):
                self._events.add_scalar(f"{where}/{key}", value, row["step"])


def _infinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _events(directory: Path, step: int) -> Any:
    """Torch's writer; what an interrupted run wrote after `step` is void."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("--tensorboard: install tensorboard (pip install tensorboard)") from error
    return SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
