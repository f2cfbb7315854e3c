"""The text of batch scripts, short enough to be read and changed by hand."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.cluster.commands import STARTS
from trainer.cluster.site import Site
from trainer.cluster.slurm import MARK
from trainer.cluster.tasks import LIST

WARNING = 300  # seconds before a time limit, in which a checkpoint has to be written


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one run takes: `nodes`, and on each of them GPUs and processes."""

    nodes: int = 1
    gpus: int = 1
    processes: int = 1

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.nodes * self.processes


def train(folder: Path, array: str, site: Site, shape: Shape, *, starts: int = STARTS) -> str:
    """An array whose tasks train the runs of `folder`/tasks. array: as sbatch is told."""
    options = ["--array=" + array, *_REQUEUED, f"--nodes={shape.nodes}"]
    options.append(f"--ntasks-per-node={shape.processes}")
    options += [f"--gpus-per-node={shape.gpus}"] * bool(shape.gpus)
    return f"""{_head(folder.name, folder / "%a.log", options, site)}
# Task N trains the runs that stand behind N in the file `tasks`, beside this script
id=${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}
{_start(site)}
mapfile -t runs < <(awk -F '\\t' -v task="$SLURM_ARRAY_TASK_ID" '$1 == task {{print $2}}' \\
    {shlex.quote(str(folder / LIST))})
failed=$((${{#runs[@]}} == 0))
for run in "${{runs[@]}}"; do
    {_srun(site)} \\
        {_worker(site, shape)} </dev/null 2>>"$run/stderr.log"
    status=$?
    [ $status -ne 0 ] || continue
{_requeue(site, "run", starts)}
    failed=$status
done
exit $failed
"""


def part(name: str, logs: Path, array: str, place: str, words: Sequence[str], site: Site) -> str:
    """A job of a preparation. array: of the parts; empty where it is one job. place: the folder in
    which it notes how it goes, in the shell's words. words: of our command line, the last one in
    the shell's.
    """
    options = ["--array=" + array] * bool(array) + [*_REQUEUED]
    log = logs / (f"{name.split('-')[1]}-%a.log" if array else f"{name.split('-')[1]}.log")
    command = f"{site.program} {shlex.join(words[:-1])} {words[-1]}"
    job = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "$SLURM_JOB_ID"
    return f"""{_head(name, log, options, site)}
id={job}
place={place}
{_start(site)}
mkdir -p "$place"
{_srun(site)} \\
    {command} </dev/null 2>>"$place/stderr.log"
status=$?
[ $status -ne 0 ] || exit 0
{_requeue(site, "place", STARTS, "")}
exit $status
"""


def single(name: str, logs: Path, commands: Sequence[Sequence[str]], site: Site, gpus: int) -> str:
    """One job that runs commands of ours, one after another, as long as they succeed."""
    options = ["--requeue", "--open-mode=append", *[f"--gpus-per-node={gpus}"] * bool(gpus)]
    steps = " &&\n".join(
        f"{_srun(site)} \\\n    {site.program} {shlex.join(words)}" for words in commands
    )
    return f"""{_head(name, logs / "job.log", options, site)}
{_start(site)}
{steps}
"""


def go_on(name: str, logs: Path, words: Sequence[str], site: Site) -> str:
    """One job that submits further ones, by the code that submits it: a container has no sbatch."""
    outside = replace(site, container="", command="" if site.container else site.command)
    options = [
        "--requeue",
        "--open-mode=append",
        "--kill-on-invalid-dep=yes",
        f"--chdir={Path.cwd()}",
    ]
    lines = "\n".join(_before(site))  # no trap: without srun, a cancelled one would go on
    return f"""{_head(name, logs / "job.log", options, site)}
{lines}
{outside.program} {shlex.join(words)}
"""


# Options of jobs that go back into the queue by themselves
_REQUEUED = ("--requeue", "--open-mode=append", f"--signal=USR2@{WARNING}",
             "--kill-on-invalid-dep=yes")  # fmt: skip


def _requeue(site: Site, what: str, starts: int, indent: str = "    ") -> str:
    """The end of a task that did not finish."""
    again = f'{site.program} again "${what}" $status'
    again += f" --starts {starts}" if starts != STARTS else ""
    lines = f"""case $(squeue -h -j "$id" -o "%T %r") in
    "COMPLETING TimeLimit") ;;
    COMPLETING*) exit $status ;;  # scancel is final
esac
# stopped, or killed by a signal, and not stuck: the task goes on where it was
{again} &&
    exec scontrol requeue "$id\""""
    return "\n".join(indent + line for line in lines.splitlines())


def _head(name: str, log: Path, options: list[str], site: Site) -> str:
    """The options of sbatch; the site's own come last, and win."""
    place = str(log.parent).replace("%", "%%")
    words = [f"--job-name={name}", f"--output={place}/{log.name}", *options]
    words += [f"--{key}={value}" for key in ("account", "partition", "time")
              if (value := getattr(site, key))]  # fmt: skip
    words.append(f"--cpus-per-task={site.cpus}")
    words += [f"--mail-user={site.mail}", "--mail-type=END,FAIL"] if site.mail else []
    lines = [shlex.quote(word) for word in words]
    lines += [shlex.join(site.options)] if site.options else []
    return "\n".join(["#!/bin/bash", *(MARK + line for line in lines)])


def _start(site: Site) -> str:
    trap = "trap : TERM USR1 USR2  # srun hands them on: wait for it, and see how it ends"
    return "\n".join([trap, *_before(site)])


def _before(site: Site) -> list[str]:
    lines = [*site.setup]
    if site.spread > 1:
        lines.append(f"sleep $((RANDOM % {site.spread}))  # not all open their files at once")
    return lines


def _srun(site: Site) -> str:
    return f"srun --kill-on-bad-exit=1 --cpus-per-task={site.cpus}"


def _worker(site: Site, shape: Shape) -> str:
    """The command of one run; several processes are told what torchrun would tell them."""
    command = f'{site.program} worker "$run/spec.json"'
    if shape.ranks == 1:
        return command
    return f"""env \\
        MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" \\
        MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) WORLD_SIZE={shape.ranks} \\
        bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' - \\
        {command}"""
