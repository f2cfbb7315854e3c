"""The commands for a cluster: `spectral submit` and what is under it."""

import json
import time
from pathlib import Path
from typing import Any

import click

from pipeline.console import PATH, Group, PlainCommand, apply, json_option
from trainer.console import run_options, runs_option

WATCHED = 10  # seconds between two looks of `status --watch`
# What every job of ours is told
_job_options = apply(
    click.option("--partition", help="Where the jobs wait [default: the site's]."),
    click.option("--account", help="Who pays for them [default: the site's]."),
    click.option("--time", help="Limit of a job, such as 12:00:00 [default: the site's]."),
    click.option("--cpus", type=click.IntRange(min=1), help="Cores of a process [default: 4]."),
    click.option("--mail", help="Where Slurm writes to at the end of a job."),
    click.option("--container", help="Words before our commands: apptainer exec --nv IMAGE."),
    click.option(
        "--site", type=PATH, help="What the cluster wants to be told [default: ./spectral.toml]."
    ),
    click.option("--dry-run", is_flag=True, help="Print the scripts; write and submit nothing."),
    click.argument("sbatch", nargs=-1, metavar="[-- SBATCH OPTIONS]", type=click.UNPROCESSED),
)
_SITE = ("partition", "account", "time", "cpus", "mail", "container")


def _site(path: Path | None, asked: dict[str, Any]) -> Any:
    """Of the file, and of the options, which are taken out of `asked`."""
    from trainer.cluster.site import load

    said = {name: asked.pop(name) for name in _SITE}
    return load(path).over(asked.pop("sbatch"), **said)


@click.group(cls=Group)
def submit() -> None:
    """Hand jobs to a cluster that runs Slurm.

    Submitted again, only what is neither finished nor in the queue is started.
    """


@submit.command()
@run_options
@click.option(
    "--gpus", type=click.IntRange(min=0), default=1, show_default=True, help="Of a shard's node."
)
@click.option("--nodes", type=click.IntRange(min=1), default=1, help="Of a shard.")
@click.option(
    "--processes", type=click.IntRange(min=1), help="Of a node [default: one for each GPU]."
)
@click.option("--at-once", type=click.IntRange(min=1), help="Tasks that may run at a time.")
@click.option(
    "--starts",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="In a row without a new checkpoint, after which a run is given up.",
)
@_job_options
def train(
    gpus: int,
    nodes: int,
    processes: int | None,
    at_once: int | None,
    starts: int,
    site: Path | None,
    dry_run: bool,
    **asked: Any,
) -> None:
    """An array that trains one shard a task, taking all that `spectral train` takes.

    A task that is stopped, preempted or killed, or reaches its time limit, goes back into the
    queue and on from its last checkpoint; one that fails does not. Finished runs, and those in the
    queue, are left out.

    Example: spectral submit train --shard all --dataset imagenet1k --time 12:00:00 -- --mem=32G
    """
    wanted = _site(site, asked)
    from trainer.cluster.script import Shape
    from trainer.cluster.submit import Order, check_shape
    from trainer.cluster.submit import train as run
    from trainer.data.selection import runs_root
    from trainer.jobs.asked import runs_asked_for

    shape = Shape(nodes=nodes, gpus=gpus, processes=processes or max(1, gpus))
    check_shape(shape)
    prepared, specs = runs_asked_for(**asked)
    order = Order(
        root=runs_root(asked["runs"]),
        site=wanted,
        shape=shape,
        at_once=at_once,
        starts=starts,
        dry_run=dry_run,
    )
    for line in run(specs, prepared, order):
        click.echo(line)


@click.command(cls=PlainCommand)
@click.argument("words", nargs=-1)
@runs_option
@click.option("--watch", is_flag=True, help=f"Say it again every {WATCHED} s, until Ctrl-C.")
@json_option
def status(words: tuple[str, ...], runs: Path | None, watch: bool, as_json: bool) -> None:
    """Say where all runs stand: how far, how good, running, in the queue, or why not.

    WORDS choose: those whose folders, shard or state hold all of them. Where there is a Slurm, its
    queue is asked too. Nothing is written.

    Example: spectral status cifar10 failed
    """
    from trainer.cluster.standing import standing
    from trainer.data.selection import runs_root
    from trainer.reports.runs import table

    root = runs_root(runs)
    while True:
        found = standing(root, words)
        if watch and not as_json:
            click.clear()
        click.echo(
            json.dumps([run.row() for run in found], indent=1) if as_json else table(found, root)
        )
        if not watch:
            return
        time.sleep(WATCHED)
