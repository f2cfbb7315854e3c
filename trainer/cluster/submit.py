"""Specifications of runs in, jobs in the queue out: only those that are neither finished nor there.

What waits for another run, to start from its weights, is an array of its own that depends on it.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import write_whole
from pipeline.ranges import ranges
from trainer.cluster import again, script, slurm
from trainer.cluster.commands import STARTS
from trainer.cluster.script import Shape
from trainer.cluster.site import Site
from trainer.cluster.slurm import Queued, SlurmError
from trainer.cluster.tasks import FOLDER, SCRIPT, Tasks, assign, in_queue
from trainer.data.selection import Prepared
from trainer.record.rundir import RunDir
from trainer.reports.report import figures
from trainer.run.carry_out import first_weights
from trainer.run.spec import RunSpec

REPORT = "report.html"  # of a group's directory


@dataclass(frozen=True, kw_only=True)
class Order:
    """How runs are to be carried out. root: of all runs. at_once: tasks that may run at a time.
    starts: without progress, after which a run is given up.
    """

    root: Path
    site: Site
    shape: Shape
    at_once: int | None = None
    starts: int = STARTS
    dry_run: bool = False


def train(
    specs: Sequence[RunSpec], data: Prepared, order: Order
) -> Generator[str, None, dict[Path, str]]:
    """Submit what is left to do; a line of each run that is left out, and of each job. Returns the
    runs that are in the queue now, each with its job.
    """
    root = order.root.absolute()
    jobs = in_queue(root, _queued(order))
    left = []
    for spec in specs:
        run = RunDir(spec.directory)
        if result := run.finished(spec.recipe, data.manifest):
            yield f"{run.path}: already finished, {figures(result)}"
        elif job := jobs.get(run.path):
            yield f"{run.path}: in the queue already, job {job.job}, {job.state}"
        else:
            run.check_same(spec.recipe, data.manifest)  # before its spec.json is replaced
            left.append(spec)
    here = {spec.directory for spec in left}
    for spec in left:
        if spec.init_run is not None and spec.init_run not in here and spec.init_run not in jobs:
            first_weights(spec, data)  # refused now, rather than by every job
    submitted = {run: job.job for run, job in jobs.items()}
    for alike in _stages(specs):
        if todo := [spec for spec in alike if spec in left]:
            yield from _array(alike, todo, submitted, order)
    return submitted


def _queued(order: Order) -> list[Queued]:
    """What is in the queue; a dry run may be made where there is none."""
    try:
        return slurm.queued()
    except SlurmError:
        if order.dry_run:
            return []
        raise


def _stages(specs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """First those that wait for no other one, then those that wait only for these, and so on."""
    depth: dict[Path, int] = {}
    for _ in specs:  # a chain is as long at most
        for spec in specs:
            before = [depth.get(run, 0) for run in spec.after if run != spec.directory]
            depth[spec.directory] = 1 + max(before) if before else 0
    levels = sorted({*depth.values()})
    return [[spec for spec in specs if depth[spec.directory] == level] for level in levels]


def _array(
    alike: list[RunSpec], todo: list[RunSpec], submitted: dict[Path, str], order: Order
) -> Iterator[str]:
    """alike: all that were asked for, so that the numbers of tasks stay the same however often one
    submits; todo: those of them that are to be started.
    """
    root, most = order.root.absolute(), slurm.max_array(dry_run=order.dry_run)
    wanted = [spec.directory for spec in todo]
    named = [spec.directory for spec in alike] if len(alike) <= most else wanted
    tasks = assign(named, "train", most)
    chosen = {n for n, runs in tasks.runs.items() if {*runs} & {*wanted}}
    array = ranges(chosen) + (f"%{order.at_once}" if order.at_once else "")
    text = script.train(tasks.folder(root), array, order.site, order.shape, starts=order.starts)
    before = {job for spec in todo for run in spec.after if (job := submitted.get(run))}
    dependency = ",".join(f"afterok:{job}" for job in sorted(before))
    if order.dry_run:
        yield from _shown(text, tasks, dependency)
        submitted |= {run: f"JOB_{n}" for n in chosen for run in tasks.runs[n]}
        return
    for spec in todo:
        spec.save()
        again.forget(spec.directory)
    tasks.write(root)
    job = _submit(tasks.folder(root), text, dependency)
    submitted |= {run: f"{job}_{n}" for n in chosen for run in tasks.runs[n]}
    yield f"job {job}: {len(wanted)} runs, array {array}, {tasks.folder(root)}" + (
        f", after {dependency}" * bool(dependency)
    )


def _submit(folder: Path, text: str, dependency: str) -> str:
    """Write the script, and hand it in."""
    path = folder / SCRIPT
    write_whole(path, text.encode())
    return slurm.submit(path, dependency)


def _shown(text: str, tasks: Tasks | None, dependency: str) -> Iterator[str]:
    """Script, list and command, with nothing written."""
    words = f" --dependency={dependency}" * bool(dependency)
    yield f"# {SCRIPT}, submitted by: sbatch{words} {SCRIPT}"
    yield text.rstrip("\n")
    if tasks is not None:
        yield "\n# tasks\n" + "".join(f"# {line}\n" for line in tasks.text.splitlines())


def ensemble(
    group: Path, data: Prepared, order: Order, submitted: Mapping[Path, str] | None = None
) -> Iterator[str]:
    """One job that fuses the runs of a group, and writes a report beside them, once those in the
    queue have ended, however they ended: what is missing is said in its log. submitted: the runs
    in the queue, where that is known.
    """
    root = order.root.absolute()
    group = group.absolute()
    name = f"{slurm.PREFIX}ensemble-{sha256(str(group).encode()).hexdigest()[:8]}"
    queue = _queued(order)
    if submitted is None:
        submitted = {run: job.job for run, job in in_queue(root, queue).items()}
    jobs = sorted({job for run, job in submitted.items() if run.parent == group})
    dependency = ",".join(f"afterany:{job}" for job in jobs)
    if found := next((job for job in queue if job.name == name), None):
        yield f"{group}: in the queue already, job {found.job}"
        if jobs and found.state == "PENDING" and not order.dry_run:
            slurm.call("scontrol", "update", f"JobId={found.job}", f"Dependency={dependency}")
        return
    words = ["ensemble", "--data", str(data.directory.absolute()), "--recipe", group.name,
             "--runs", str(root)]  # fmt: skip
    report = ["report", str(group), "--out", str(group / REPORT)]
    folder = root / FOLDER / name
    text = script.single(name, folder, [words, report], order.site, order.shape.gpus)
    if order.dry_run:
        yield from _shown(text, None, dependency)
        return
    folder.mkdir(parents=True, exist_ok=True)
    job = _submit(folder, text, dependency)
    yield f"job {job}: ensemble, {folder}" + f", after {dependency}" * bool(dependency)


def check_shape(shape: Shape) -> None:
    """ConfigError for what cannot be."""
    if shape.gpus and shape.processes != shape.gpus:
        raise ConfigError(
            f"--processes {shape.processes} with --gpus {shape.gpus}: a process has one GPU"
        )
