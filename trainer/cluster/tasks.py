"""Which run each task of an array trains: a file of lines `TASK<TAB>RUN`, named by its content.

RUNS/slurm/<name>/ holds the file, the script and the logs of the tasks. As no other list has that
name, a file never changes once jobs may read it; and as the jobs have it too, the queue itself
says which runs are in it, whoever submitted them and however that ended.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import write_whole
from trainer.cluster.slurm import PREFIX, Queued
from trainer.record.rundir import shard_of

FOLDER, LIST, SCRIPT = "slurm", "tasks", "job.sh"


@dataclass(frozen=True)
class Tasks:
    """Runs by task. `name`: of the job and of the folder in RUNS/slurm."""

    name: str
    runs: dict[int, tuple[Path, ...]]

    @property
    def text(self) -> str:
        """The file."""
        return "".join(f"{task}\t{run}\n" for task, runs in self.runs.items() for run in runs)

    def folder(self, root: Path) -> Path:
        """Of the list, the script and the logs."""
        return root / FOLDER / self.name

    def write(self, root: Path) -> None:
        """The list, if it is not there."""
        folder = self.folder(root)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / LIST, self.text.encode())


def assign(directories: Sequence[Path], kind: str, most: int) -> Tasks:
    """A task for each run, by the number of its shard where that tells them apart; several runs to
    a task where an array of `most` tasks is too small.
    """
    for directory in directories:
        if {"\t", "\n"} & {*str(directory)}:
            raise ConfigError(f"{directory}: a job's path can have neither tabs nor line breaks")
    each = -(-len(directories) // most)
    numbers = [_number(directory) for directory in directories]
    runs: dict[int, tuple[Path, ...]] = {}
    if each == 1 and len({*numbers}) == len(numbers) and max(numbers) < most and -1 not in numbers:
        runs = {number: (run,) for number, run in zip(numbers, directories, strict=True)}
    else:
        for at in range(0, len(directories), each):
            runs[at // each] = tuple(directories[at : at + each])
    text = Tasks("", runs).text
    return Tasks(f"{PREFIX}{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}", runs)


def _number(directory: Path) -> int:
    shard = shard_of(directory)
    return int(shard) if shard is not None and shard.isdecimal() else -1


def read(root: Path, name: str) -> Tasks | None:
    """The list of a job of this name; None where it is not of these RUNS."""
    try:
        text = (root / FOLDER / name / LIST).read_text()
    except OSError:
        return None
    runs: dict[int, tuple[Path, ...]] = {}
    for line in text.splitlines():
        task, _, run = line.partition("\t")
        runs[int(task)] = (*runs.get(int(task), ()), Path(run))
    return Tasks(name, runs)


def in_queue(root: Path, jobs: Sequence[Queued]) -> dict[Path, Queued]:
    """The runs that are waiting or running, with the job that each belongs to."""
    lists = {name: read(root, name) for name in {job.name for job in jobs}}
    found: dict[Path, Queued] = {}
    for job in jobs:
        tasks = lists[job.name]
        if tasks is not None and job.task is not None:
            found |= dict.fromkeys(tasks.runs.get(job.task, ()), job)
    return found
