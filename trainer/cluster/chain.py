"""From the data to the report in one command: preparation, training, ensemble and its report.

Runs can be named only when their data are there. So a job that waits for the preparation types the
same command again, which then finds the data prepared, and submits the rest.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pipeline.files import write_whole
from pipeline.format import manifest
from trainer.cluster import prepare, script, slurm, submit
from trainer.cluster.slurm import PREFIX
from trainer.cluster.tasks import FOLDER, SCRIPT
from trainer.data.selection import Prepared
from trainer.run.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Chain:
    """words: the command that goes on. runs: how to find the data, once prepared, and the runs."""

    preparation: prepare.Order
    training: submit.Order
    words: Sequence[str]
    runs: Callable[[], tuple[Prepared, list[RunSpec]]]


def everything(chain: Chain) -> Iterator[str]:
    """Submit what can be submitted now; a line of each job, and of what is done already."""
    merging = yield from prepare.prepare(chain.preparation)
    if not (chain.preparation.directory / manifest.NAME).exists():
        yield from _go_on(chain, merging)
        return
    data, specs = chain.runs()
    submitted = yield from submit.train(specs, data, chain.training)
    for group in dict.fromkeys(spec.directory.parent for spec in specs):
        if _fused(group, submitted):
            yield f"{group}: fused already, {group / submit.REPORT}"
        else:
            yield from submit.ensemble(group, data, chain.training, submitted)


def _go_on(chain: Chain, merging: str) -> Iterator[str]:
    """The job that submits the rest, once all is merged."""
    order = chain.training
    name = f"{PREFIX}all-{sha256(shlex.join(chain.words).encode()).hexdigest()[:8]}"
    folder = order.root.absolute() / FOLDER / name
    text = script.go_on(name, folder, chain.words, order.site)
    dependency = f"afterok:{merging}"
    if order.dry_run:
        yield f"# all.sh, submitted by: sbatch --dependency={dependency} all.sh\n{text}"
        return
    if found := next((job for job in slurm.queued() if job.name == name), None):
        slurm.call("scontrol", "update", f"JobId={found.job}", f"Dependency={dependency}")
        yield f"job {found.job}, which submits the training, is in the queue already"
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SCRIPT, text.encode())
    job = slurm.submit(folder / SCRIPT, dependency)
    yield f"job {job}: submits the training and what follows, {folder}, after {dependency}"


def _fused(group: Path, submitted: Mapping[Path, str]) -> bool:
    """Whether the report is younger than all results, and no run of the group is in the queue."""
    if any(run.parent == group for run in submitted):
        return False
    try:
        made = (group / submit.REPORT).stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return all(path.stat().st_mtime_ns <= made for path in group.glob("shard_*/result.json"))
