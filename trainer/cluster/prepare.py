"""The jobs of a preparation in parts: one that lists the source, an array of parts, the merge."""

import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import write_whole
from pipeline.format import manifest, parts
from pipeline.ranges import ranges
from trainer.cluster import script, slurm
from trainer.cluster.site import Site
from trainer.cluster.slurm import PREFIX, SlurmError

_FOLDER = "slurm"  # in parts/: scripts and logs


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is prepared. directory: where it goes. words: of `spectral prepare`, without --part."""

    directory: Path
    words: Sequence[str]
    count: int
    site: Site
    max_bad: int | None = None
    at_once: int | None = None
    dry_run: bool = False


def prepare(order: Order) -> Generator[str, None, str]:
    """Submit what is left to do; a line of each job. Returns the number of the job that merges,
    with which all is done; nothing where it is done already.
    """
    directory, count = order.directory, order.count
    if (directory / manifest.NAME).exists():
        yield f"{directory}: finished already"
        return ""
    shared = parts.load(directory)
    if shared is not None and shared.count != count:
        raise ConfigError(f"{directory} was begun in {shared.count} parts: say --parts "
                          f"{shared.count}, or remove it to start over")  # fmt: skip
    if count >= (most := slurm.max_array(dry_run=order.dry_run)):
        raise ConfigError(f"--parts {count}: an array has room for {most - 1} here")
    waiting = _Waiting(order)
    left = range(1, count + 1) if shared is None else shared.missing()
    listing = waiting.job("list")
    if shared is None and listing is None:
        text = _script(order, "list", "", "", f"--part 0/{count}")
        listing = yield from _hand_in(order, "list", text, "")
    todo = sorted({*left} - waiting.parts)
    arrays = list(waiting.arrays)
    if todo:
        array = ranges(todo) + (f"%{order.at_once}" if order.at_once else "")
        place = f'/$(printf %0{len(str(count))}d "$SLURM_ARRAY_TASK_ID")'
        text = _script(order, "prepare", array, place, f'--part "$SLURM_ARRAY_TASK_ID/{count}"')
        arrays.append((yield from _hand_in(order, "prepare", text, _afterok([listing]))))
    merging = waiting.job("merge")
    if merging is None:
        merging = yield from _hand_in(order, "merge", _merge(order), _afterok(arrays))
    elif todo:
        slurm.call("scontrol", "update", f"JobId={merging}", f"Dependency={_afterok(arrays)}")
        yield f"job {merging}: the merge waits for the new array too"
    else:
        yield f"{directory}: in the queue already, merge job {merging}"
    return merging


class _Waiting:
    """What of it is in the queue."""

    def __init__(self, order: Order) -> None:
        try:
            found = slurm.queued()
        except SlurmError:
            if not order.dry_run:
                raise
            found = []
        self._jobs = {job.name: job.job for job in found}
        mine = [job for job in found if job.name == _name(order, "prepare")]
        self.parts = {job.task for job in mine if job.task is not None}
        self.arrays = sorted({job.job.partition("_")[0] for job in mine})
        self._order = order

    def job(self, kind: str) -> str | None:
        """Its number, if it is there."""
        return self._jobs.get(_name(self._order, kind))


def _name(order: Order, kind: str) -> str:
    return f"{PREFIX}{kind}-{sha256(str(order.directory).encode()).hexdigest()[:8]}"


def _afterok(jobs: Sequence[str | None]) -> str:
    return ",".join(f"afterok:{job}" for job in jobs if job)


def _logs(order: Order) -> Path:
    return order.directory / parts.FOLDER / _FOLDER


def _script(order: Order, kind: str, array: str, place: str, last: str) -> str:
    """place: what the folder in which it notes how it goes is called within parts/."""
    words = ["prepare", *order.words, "--workers", str(order.site.cpus), last]
    folder = shlex.quote(str(order.directory / parts.FOLDER)) + place
    return script.part(_name(order, kind), _logs(order), array, folder, words, order.site)


def _merge(order: Order) -> str:
    bad = [] if order.max_bad is None else ["--max-bad", str(order.max_bad)]
    words = ["merge", *bad, shlex.quote(str(order.directory))]
    folder = shlex.quote(str(order.directory / parts.FOLDER))
    return script.part(_name(order, "merge"), _logs(order), "", folder, words, order.site)


def _hand_in(order: Order, kind: str, text: str, dependency: str) -> Generator[str, None, str]:
    """A line of it; the number of the job."""
    if order.dry_run:
        words = f" --dependency={dependency}" * bool(dependency)
        yield f"# {kind}.sh, submitted by: sbatch{words} {kind}.sh\n{text}"
        return kind.upper()
    path = _logs(order) / f"{kind}.sh"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())
    job = slurm.submit(path, dependency)
    yield f"job {job}: {kind}, {path}" + f", after {dependency}" * bool(dependency)
    return job
