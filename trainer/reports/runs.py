"""A folder of runs in; what is known of each, without loading torch, out.

Nothing here is sure to be whole: a run may be under way, cut short, damaged, or not ours.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, describe
from trainer import console
from trainer.record.rundir import shard_of
from trainer.record.runlog import NAME, Status, status
from trainer.record.status import ACTIVE, is_active, read
from trainer.reports.report import duration, of_total

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. None: not known. Accuracies are shares from 0 to 1, times are in seconds.

    `state`: finished, running, failed (`error` says why), stopped (all was saved), interrupted,
    damaged or not started; of a job in a queue also waiting, requeued, held or what Slurm says.
    `node` and `job`: where it runs, or ran last. `seconds`: spent on training; of an unfinished
    run, since it was started or resumed last. `seconds_left`: of one that runs.
    """

    directory: Path
    dataset: str
    folder: str
    recipe: str
    shard: str
    state: str
    error: str | None = None
    epoch: float | None = None
    epochs: float | None = None
    step: float | None = None
    steps: float | None = None
    calib_top1: float | None = None
    val_top1: float | None = None
    images_per_s: float | None = None
    seconds: float | None = None
    updated: float | None = None
    seconds_left: float | None = None
    node: str | None = None
    job: str | None = None

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "directory": str(self.directory)}


def list_runs(
    root: Path, words: tuple[str, ...] = (), seen: Callable[[Run], Run] = lambda run: run
) -> list[Run]:
    """The runs in `root` whose folders, shard or state hold all words, in the order of names. seen:
    adds what else is known of one.
    """
    if not root.is_dir():
        raise ConfigError(f"no runs in {root}: run `spectral train` first, or name one by --runs")
    found = []
    for directory in sorted(root.glob("*/*/*/shard_*")):
        try:
            run = _look(root, directory)
        except OSError as error:
            log.warning("left out: %s", describe(error))
            continue
        run = seen(run) if run else None
        said = f"{directory.relative_to(root)} {run.shard} {run.state}".lower() if run else ""
        if run and all(word.lower() in said for word in words):
            found.append(run)
    return found


def _look(root: Path, directory: Path) -> Run | None:
    shard = shard_of(directory)
    if shard is None or not directory.is_dir():
        log.warning("left out: %s is no run of this tool", directory)
        return None
    dataset, folder, recipe = directory.relative_to(root).parts[:3]
    path = directory / NAME
    at = status(path) if path.exists() else Status()
    result, error = _result(directory / "result.json")
    said = read(directory)
    return Run(
        directory=directory,
        dataset=dataset,
        folder=folder,
        recipe=recipe,
        shard=shard,
        images_per_s=at.images_per_s,
        updated=at.time,
        node=said.host if said else None,
        job=said.job if said else None,
        **(_of_log(directory, at, error) if result is None else _of_result(result)),
    )


def _result(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The content of result.json, or what is wrong with it; neither if it is not there."""
    if not path.exists():
        return None, None
    try:
        content = json.loads(path.read_bytes())
        _of_result(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        error = f"{path} is damaged: remove it and run `spectral train` again"
        log.warning("%s", error)
        return None, error
    return content, None


def _of_result(result: dict[str, Any]) -> dict[str, Any]:
    top1 = {
        f"{split}_top1": float(result[split]["top1"])
        for split in ("calib", "val")
        if result.get(split)
    }
    return {
        "state": "finished",
        "epoch": float(result["epochs"]),
        "epochs": float(result["epochs"]),
        "step": float(result["steps"]),
        "steps": float(result["steps"]),
        "seconds": float(result["train_seconds"]),
        **top1,
    }


def _of_log(directory: Path, at: Status, damage: str | None) -> dict[str, Any]:
    state, error = ("damaged", damage) if damage else _state(directory)
    val = at.top1.get("val", {})
    return {
        "state": state,
        "error": error,
        "epoch": at.epoch,
        "epochs": at.epochs,
        "step": at.step,
        "steps": at.steps,
        "calib_top1": at.best("calib"),
        "val_top1": list(val.values())[-1] if val else None,
        "seconds": at.time - at.first[0] if at.time and at.first else None,
        "seconds_left": at.seconds_left if state == "running" else None,
    }


def _state(directory: Path) -> tuple[str, str | None]:
    """What an unfinished run does, and what it failed with."""
    if is_active(directory):
        return "running", None
    said = read(directory)
    if said is None and not (directory / NAME).exists():
        return "not started", None
    if said is None or said.state in ACTIVE:  # it was killed, or its machine has gone
        return "interrupted", None
    return said.state, said.error


_COLUMNS = (
    *("shard", "state", "job", "node", "epoch", "step", "calib", "val", "images/s"),
    *("time", "left", "last row"),
)
_FIGURES = [column for column in _COLUMNS if column not in ("state", "job", "node")]


def table(runs: list[Run], root: Path) -> str:
    """For people: a block for each recipe on each prepared data set, then what is wrong, and all
    together. A column of which nothing is known is left out.
    """
    if not runs:
        return f"no such runs in {root}"
    cells = {run.directory: _cells(run) for run in runs}
    shown = [i for i in range(len(_COLUMNS)) if any(row[i] != "–" for row in cells.values())]
    columns = [_COLUMNS[i] for i in shown]
    lines: list[str] = []
    for _, group in groupby(runs, lambda run: run.directory.parent):
        first, *more = group
        lines += [*[""] * bool(lines), f"{first.dataset}/{first.folder}, {first.recipe}"]
        rows = [tuple(cells[run.directory][i] for i in shown) for run in (first, *more)]
        lines += [f"  {line}" for line in console.table(columns, rows, _FIGURES)]
    return "\n".join([*lines, *_errors(runs), totals(runs)])


def totals(runs: list[Run]) -> str:
    """How many are in each state, how fast those go that run, and when the last one ends."""
    counts = Counter(run.state for run in runs).most_common()
    words = ", ".join(f"{count} {state}" for state, count in counts)
    running = [run for run in runs if run.state == "running"]
    speed = sum(run.images_per_s or 0 for run in running)
    left = max((run.seconds_left or 0 for run in running), default=0)
    return (
        f"{len(runs)} run{'s' * (len(runs) > 1)}: {words}"
        + f"; {speed:,.0f} images/s" * bool(speed)
        + f"; those that run end in about {duration(left)}" * bool(left)
    )


def _errors(runs: list[Run]) -> Iterator[str]:
    for run in runs:
        if run.error and run.state in ("failed", "held"):
            said = f"failed: {run.error}" if run.state == "failed" else f"is {run.error}"
            yield f"{run.directory} {said}"


def _cells(run: Run) -> tuple[str, ...]:
    ago = None if run.updated is None else max(0.0, time.time() - run.updated)
    return (
        run.shard,
        run.state,
        run.job or "–",
        run.node if run.node and run.job else "–",
        of_total(run.epoch, run.epochs),
        of_total(run.step, run.steps),
        "–" if run.calib_top1 is None else f"{run.calib_top1:.2%}",
        "–" if run.val_top1 is None else f"{run.val_top1:.2%}",
        "–" if run.images_per_s is None else f"{run.images_per_s:,.0f}",
        duration(run.seconds),
        duration(run.seconds_left),
        "–" if ago is None else f"{duration(ago)} ago",
    )
