"""Where all runs stand: what their directories say, and what the queue says of their jobs.

It reads, and never writes. A cluster's records of ended jobs (sacct) are not needed: how a run
ended stands in its directory.
"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from pipeline.errors import DamagedError
from pipeline.format import parts
from pipeline.ranges import ranges
from trainer.cluster import slurm
from trainer.cluster.slurm import Queued, SlurmError
from trainer.cluster.tasks import FOLDER, in_queue
from trainer.reports.runs import Run, list_runs

log = logging.getLogger(__name__)


def standing(root: Path, words: tuple[str, ...] = ()) -> list[Run]:
    """The runs in `root` whose folders, shard or state hold all words."""
    jobs = _jobs(root.absolute())
    going = _preempted() if any(job.state == "RUNNING" for job in jobs.values()) else set()
    jobs = {run: replace(job, state="PREEMPTED") if job.job in going else job
            for run, job in jobs.items()}  # fmt: skip
    return list_runs(root, words, lambda run: _seen(run, jobs.get(run.directory.absolute())))


def _jobs(root: Path) -> dict[Path, Queued]:
    """By run; none where nothing was ever submitted, or on a machine that has no Slurm."""
    if not (root / FOLDER).is_dir() or shutil.which("squeue") is None:
        return {}
    try:
        return in_queue(root, slurm.queued())
    except SlurmError as error:
        log.warning("the queue is not known: %s", error)
        return {}


def _preempted() -> set[str]:
    try:
        return slurm.preempted()
    except SlurmError:  # of a Slurm that does not tell
        return set()


def parts_left(data: Path, words: tuple[str, ...] = ()) -> list[str]:
    """A line of each preparation in parts that has not been merged."""
    lines = []
    for plan in sorted(data.glob(f"*/*/{parts.FOLDER}/{parts.PLAN}")):
        directory = plan.parents[1]
        name = str(directory.relative_to(data))
        if not all(word.lower() in name.lower() for word in words):
            continue
        try:
            if (shared := parts.load(directory)) is None:
                continue
            missing = shared.missing()
        except DamagedError as error:  # of one; the table goes on
            lines.append(str(error))
            continue
        lines.append(
            f"{directory}: {shared.count - len(missing)} of {shared.count} parts prepared, "
            + (f"missing --array={ranges(missing)}" if missing else "not merged yet")
        )
    return lines


def _seen(run: Run, job: Queued | None) -> Run:
    """With what the queue knows."""
    if job is None or run.state == "finished":
        return run
    if job.state != "PENDING":
        begun = job.state in ("RUNNING", "COMPLETING") and run.job == job.job
        state = run.state if begun and run.state != "interrupted" else job.state.lower()
        return replace(run, state=state, error=None if state != "failed" else run.error,
                       job=job.job, node=job.node or run.node)  # fmt: skip
    if "held" in job.reason.lower():
        what = f"held ({job.reason}): scontrol release {job.job}"
        return replace(run, state="held", error=what, job=job.job, node=None)
    state = "requeued" if run.job == job.job else "waiting"
    return replace(run, state=state, error=None, job=job.job, node=None)
