"""The text of batch scripts, short enough to be read and changed by hand."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from trainer.cluster.again import STARTS
from trainer.cluster.site import Site
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
    again = f'{site.command} trainer.cluster.again "$run" $status'
    if starts != STARTS:
        again += f" --starts {starts}"
    options = ["--array=" + array, *_requeued(folder), f"--nodes={shape.nodes}"]
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
    case $(squeue -h -j "$id" -o "%T %r") in
        "COMPLETING TimeLimit") ;;
        COMPLETING*) exit $status ;;  # scancel is final
    esac
    # stopped, or killed by a signal, and not stuck: the task goes on from its last checkpoint
    {again} &&
        exec scontrol requeue "$id"
    failed=$status
done
exit $failed
"""


def _requeued(folder: Path) -> list[str]:
    """Options of jobs that go back into the queue by themselves."""
    return ["--requeue", "--open-mode=append", f"--signal=USR2@{WARNING}",
            "--kill-on-invalid-dep=yes"]  # fmt: skip


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
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines)])


def _start(site: Site) -> str:
    lines = ["trap : TERM USR1 USR2  # srun hands them on: wait for it, and see how it ends"]
    lines += site.setup
    if site.spread > 1:
        lines.append(f"sleep $((RANDOM % {site.spread}))  # not all open their files at once")
    return "\n".join(lines)


def _srun(site: Site) -> str:
    return f"srun --kill-on-bad-exit=1 --cpus-per-task={site.cpus}"


def _worker(site: Site, shape: Shape) -> str:
    """The command of one run; several processes are told what torchrun would tell them."""
    command = f'{site.command} trainer.run.worker "$run/spec.json"'
    if shape.ranks == 1:
        return command
    return f"""env \\
        MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" \\
        MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) WORLD_SIZE={shape.ranks} \\
        bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' - \\
        {command}"""
