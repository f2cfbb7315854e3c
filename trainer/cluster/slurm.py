"""The commands of Slurm that are used, here and nowhere else; their answers as values."""

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SpectralError

PREFIX = "spectral-"  # of the names of our jobs; the rest says which list their tasks are of
MARK = "#SBATCH "  # of a line of a script that holds options
SECONDS = 60  # that an answer may take
_FORMAT = "%i|%T|%r|%N|%j"
MOST_TASKS = 1001  # Slurm's default
# Slurm is there. What else the environment says would change our requests unseen: which jobs there
# are (SQUEUE_STATES), or what the job was told in which we are typed (SLURM_NTASKS)
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
_DROPPED = ("SLURM_", "SQUEUE_", "SBATCH_ARRAY_INX", "SBATCH_WAIT")


class SlurmError(SpectralError):
    """A command of Slurm's that is missing or failed."""


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job, or a task of an array, that waits or runs. `state` and `reason`: in Slurm's words."""

    job: str
    state: str
    reason: str
    node: str
    name: str

    @property
    def task(self) -> int | None:
        """The index within its array."""
        index = self.job.partition("_")[2]
        return int(index) if index.isdecimal() else None


def call(*command: str, text: str | None = None) -> str:
    """What it answers; SlurmError with what it complains of."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=SECONDS, check=False,
            env=_environment(),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SlurmError(
            f"{command[0]} is not installed here: type this on a login node of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} has not answered in {SECONDS} s: try again") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SlurmError(f"{command[0]}: {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout


def _environment() -> dict[str, str]:
    """Ours, without what would change Slurm's answers."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith(_DROPPED)
    }


def queued() -> list[Queued]:
    """Our own jobs that have not ended, a line a task."""
    user = str(os.getuid())
    lines = call("squeue", "--noheader", "--array", "--user", user, "--format", _FORMAT)
    found = []
    for line in lines.splitlines():
        job, state, reason, node, name = line.split("|", 4)
        if name.startswith(PREFIX):
            found.append(Queued(job=job, state=state, reason=reason, node=node, name=name))
    return found


def preempted() -> set[str]:
    """Jobs in their grace, before they give way. Slurm forgets it when they are requeued."""
    user = str(os.getuid())
    command = ("squeue", "--noheader", "--array", "--user", user, "--states=RUNNING,COMPLETING")
    lines = call(*command, "--Format", "PreemptTime:24,JobArrayID:40").splitlines()
    words = [line.split() for line in lines]
    return {job for when, job in (w for w in words if len(w) == 2) if when[:1].isdigit()}


def max_array(*, dry_run: bool) -> int:
    """Tasks that an array may have, with the indices below that number; of a dry run, where there
    is no Slurm to ask, its default.
    """
    try:
        config = call("scontrol", "show", "config")
    except SlurmError:
        if not dry_run:
            raise
        config = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.M)
    return int(found[1]) if found else MOST_TASKS


def submit(script: Path, dependency: str = "") -> str:
    """The number of the new job. The script's options are said on the command line too, as a site's
    SBATCH_PARTITION and the like win over the script.
    """
    lines = script.read_text().splitlines()
    marked = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    words = [word for line in marked for word in shlex.split(line)]
    words += [f"--dependency={dependency}"] * bool(dependency)
    return call("sbatch", "--parsable", *words, str(script)).strip().partition(";")[0]
