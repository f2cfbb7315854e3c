"""Decides at the end of a task whether its run goes back into the queue.

RUN is the directory of a run, or the folder of a part of a preparation. What was stopped (75) or
killed by a signal does, however often, as long as it gets on: 200 preemptions are normal, three
starts that end at the step at which they began are not. All else has failed for good, and its last
error is said here, and noted for `spectral status`.
"""

import json
import signal
from pathlib import Path

from pipeline.errors import SpectralError, StoppedError
from pipeline.files import write_json
from pipeline.format import parts
from trainer.record import stderr
from trainer.record.status import is_active, note_failure
from trainer.record.status import read as read_status
from trainer.run.spec import NAME as SPEC

NAME = "starts.json"  # of a run's directory


class FailedError(SpectralError):
    """A run that is not to be started again."""


def check(run: Path, status: int, starts: int) -> str:
    """A line of why it goes on; FailedError where it does not."""
    error = _last_error(run, status)
    if status != StoppedError.exit_status and status <= 128:
        _note(run, error)
        raise FailedError(f"{run}: {error}; more in {stderr.path_of(run)}")
    count, step = idle_starts(run)
    if count >= starts:
        text = f"given up after {count} starts that ended at step {step}; the last one: {error}"
        _note(run, text)
        raise FailedError(f"{run}: {text}; more in {stderr.path_of(run)}")
    return f"{run}: {error}, saved at step {step}: back into the queue"


def idle_starts(run: Path) -> tuple[int, int]:
    """How many starts in a row, with the one that has just ended, came to no new checkpoint; and
    the step of the last one.
    """
    try:
        before = json.loads((run / NAME).read_bytes())
        idle, then = int(before["idle"]), int(before["step"])
    except (OSError, ValueError, KeyError, TypeError):
        idle = then = 0
    state = read_status(run)
    step = (state.saved if state else None) or parts.progress(run)
    idle = 0 if step > then else idle + 1
    write_json(run / NAME, {"idle": idle, "step": step})
    return idle, step


def forget(run: Path) -> None:
    """Somebody has looked at it and starts it anew."""
    (run / NAME).unlink(missing_ok=True)


def _note(run: Path, error: str) -> None:
    """For `spectral status`, unless another process trains the run, which is what failed us."""
    if (run / SPEC).exists() and not is_active(run):
        note_failure(run, error)


def _last_error(run: Path, status: int) -> str:
    """What the processes said last; a killed one says nothing."""
    if status == StoppedError.exit_status:
        return "stopped"
    if status > 128:
        hint = " (often: memory ran out)" if status - 128 == signal.SIGKILL else ""
        return f"killed by {_signal_name(status - 128)}{hint}"
    said = stderr.last_error(stderr.path_of(run), 0).removeprefix("Error: ")
    return said or f"ended with exit status {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
