"""A task whose worker hung or died in, the image to blame out; or the verdict that none is.

An image is left out when a second, fresh worker fails at it, too. What the machine may have caused
(a read that does not return, SIGKILL, as when memory runs out) is laid to an image only once
the others of its task have passed in that worker.
"""

import logging
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from pipeline.errors import WorkerError
from pipeline.progress import readable
from pipeline.sources.index import Place
from pipeline.stage.journal import Journal
from pipeline.stage.messages import Task
from pipeline.stage.shared import READING
from pipeline.stage.worker import OUT_OF_MEMORY

VERDICTS = "verdicts.jsonl"
MOST_FAILURES = 3  # of one task, without a verdict
log = logging.getLogger(__name__)


class Verdicts:
    """Images that hang, crash or exhaust a worker: reasons by place, kept in the journal, so that
    neither the rest of a run nor a resumed one meets them again. A context manager.
    """

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / VERDICTS)
        self._reasons = {
            Place(*record["place"]): record["reason"] for record in self._journal.read()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def add(self, place: Place, reason: str) -> None:
        """Leave this image out; it is on the disk when this returns."""
        self._journal.append({"place": list(vars(place).values()), "reason": reason})
        self._reasons[place] = reason

    def among(self, places: list[Place]) -> dict[int, str]:
        """Reasons by position in the list."""
        if not self._reasons:
            return {}
        found = ((i, self._reasons.get(place)) for i, place in enumerate(places))
        return {i: reason for i, reason in found if reason is not None}


@dataclass(frozen=True)
class Loss:
    """How a worker was lost. The machine may be the cause, and not an image."""

    how: str
    machine: bool


def out_of_time(seconds: float, doing: int) -> Loss:
    """It was killed as nothing came of one image for so long."""
    what = "reading" if doing == READING else "decoding"
    return Loss(f"{what} took longer than {seconds:g} s", doing == READING)


def ended(status: int | None, most_bytes: int) -> Loss:
    """It ended by itself, or somebody else killed it. status: as of multiprocessing."""
    if status == OUT_OF_MEMORY:
        return Loss(f"needs more memory than {readable(most_bytes)}", False)
    if status == -signal.SIGKILL:
        return Loss("its worker was killed (SIGKILL), as when memory runs out", True)
    if status is not None and status < 0:
        return Loss(f"the decoder crashed ({signal_name(-status)})", False)
    return Loss(f"the decoder ended its process (exit status {status})", False)


def signal_name(number: int) -> str:
    """SIGSEGV and the like; those of real time have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass
class Job:
    """A task until its answer is there, with the slot that it has."""

    task: Task
    slot: int
    _suspects: list[int] = field(default_factory=list)
    _machine: bool = False
    _failures: int = 0

    def for_worker(self, verdicts: Verdicts) -> Task:
        """The task without what is refused; where workers were lost, with a trial first."""
        refused = verdicts.among(self.task.places)
        images = range(len(self.task.places))
        others = [i for i in images if i not in self._suspects and i not in refused]
        trial = (others if self._machine else []) + self._suspects
        return replace(self.task, slot=self.slot, refused=refused, trial=trial, ids=[])

    def lost(self, loss: Loss, image: int | None, verdicts: Verdicts) -> None:
        """Take in that a worker was lost, at an image or between two; WorkerError where it goes
        on and on.
        """
        name = "no image" if image is None else self.task.ids[image]
        if image is not None and image in self._suspects:
            verdicts.add(self.task.places[image], loss.how)
            log.warning("%s: %s: left out", name, loss.how)
            self._suspects.remove(image)
            self._failures = 0
            return
        self._failures += 1
        if self._failures > MOST_FAILURES:
            names = ", ".join(self.task.ids[i] for i in self._suspects) or name
            raise WorkerError(
                f"worker processes are lost again and again, the last one at {name}: {loss.how}; "
                f"before at {names}. Is the machine short of memory (try fewer --workers), or is a "
                "disk gone? Nothing is lost but time: run the same command again"
            )
        log.warning("%s: %s: tried again in a new process", name, loss.how)
        self._machine |= loss.machine
        if image is not None:
            self._suspects.append(image)
