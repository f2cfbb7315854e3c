"""The commands for a cluster: `spectral submit` and what is under it."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.console import PATH, Group, PlainCommand, apply, json_option, prepare_options
from trainer.console import (
    data_options,
    run_options,
    runs_option,
    shard_option,
    training_options,
)

STARTS = 3  # without a new checkpoint in between, after which a run is given up
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
# How the tasks of a training are shaped
_shape_options = apply(
    click.option(
        "--gpus",
        type=click.IntRange(min=0),
        default=1,
        show_default=True,
        help="Of a shard's node.",
    ),
    click.option("--nodes", type=click.IntRange(min=1), default=1, help="Of a shard."),
    click.option(
        "--processes", type=click.IntRange(min=1), help="Of a node [default: one for each GPU]."
    ),
    click.option("--at-once", type=click.IntRange(min=1), help="Tasks that may run at a time."),
    click.option(
        "--starts",
        type=click.IntRange(min=1),
        default=STARTS,
        show_default=True,
        help="In a row without a new checkpoint, after which a run is given up.",
    ),
)
WHICH = ("dataset", "splits", "size", "transform", "layout", "codec")  # data is chosen by
_PLACES = ("source", "out")  # said again as whole paths
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
@_shape_options
@click.option(
    "--engine",
    type=click.Choice(["slurm", "kubernetes"]),
    default="slurm",
    show_default=True,
    help="kubernetes: print a manifest, with --dry-run.",
)
@_job_options
def train(
    gpus: int,
    nodes: int,
    processes: int | None,
    at_once: int | None,
    starts: int,
    engine: str,
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
    from trainer.jobs.asked import keep_plan, runs_asked_for

    shape = Shape(nodes=nodes, gpus=gpus, processes=processes or max(1, gpus))
    check_shape(shape)
    prepared, specs = runs_asked_for(**asked)
    if engine == "kubernetes":
        if not dry_run:
            raise click.UsageError("--engine kubernetes prints a manifest: say --dry-run too")
        from trainer.cluster.kubernetes import manifest

        words = _said(click.get_current_context(), {*asked} - {"shards", "data", "runs"} - {*WHICH})
        text = manifest(
            list(dict.fromkeys(spec.shard for spec in specs)),
            words,
            prepared.directory.absolute(),
            runs_root(asked["runs"]).absolute(),
            wanted,
            shape,
            at_once=at_once,
            starts=starts,
        )
        click.echo(text, nl=False)
        return
    order = Order(
        root=runs_root(asked["runs"]),
        site=wanted,
        shape=shape,
        at_once=at_once,
        starts=starts,
        dry_run=dry_run,
    )
    if not dry_run:
        keep_plan(specs, asked["plan_file"])
    for line in run(specs, prepared, order):
        click.echo(line)


@submit.command()
@click.argument("dataset")
@prepare_options
@click.option("--parts", type=click.IntRange(min=1), required=True, help="Tasks to share it.")
@click.option("--at-once", type=click.IntRange(min=1), help="Tasks that may run at a time.")
@_job_options
def prepare(
    dataset: str,
    parts: int,
    at_once: int | None,
    site: Path | None,
    dry_run: bool,
    **asked: Any,
) -> None:
    """Prepare DATASET in parts: one job lists the source, an array decodes, the last one merges.

    It takes all that `spectral prepare` takes. Finished parts, and those in the queue, are left
    out.

    Example: spectral submit prepare imagenet1k --source DIR --splits 36 --parts 64 --time 4:00:00
    """
    wanted = _site(site, asked)
    from trainer.cluster.prepare import prepare as run

    words = _said(click.get_current_context(), {*asked} - {*_PLACES, "max_bad"})
    order = _preparation(
        dataset, asked, words, count=parts, site=wanted, at_once=at_once, dry_run=dry_run
    )
    for line in run(order):
        click.echo(line)


def _preparation(dataset: str, asked: dict[str, Any], words: list[str], **more: Any) -> Any:
    """asked: what `spectral prepare` takes; words: the same, as it was said."""
    import os

    from pipeline.preparation import preparation
    from trainer.cluster.prepare import Order

    for name in ("overwrite", "report_bad", "part", "workers"):
        if asked.pop(name):
            raise click.UsageError(
                f"--{name.replace('_', '-')} is not for jobs that share the work"
            )
    del asked["image_timeout"]
    source, out, max_bad = asked.pop("source"), asked.pop("out"), asked.pop("max_bad")
    source = (source or Path(os.environ.get("SPECTRAL_SOURCES", "sources")) / dataset).absolute()
    out = (out or Path(os.environ.get("SPECTRAL_DATA", "data"))).absolute()
    bad = [] if max_bad is None else ["--max-bad", str(max_bad)]
    return Order(
        directory=preparation(dataset, asked.pop("splits"), **asked).directory(out),
        words=[dataset, "--source", str(source), "--out", str(out), *words, *bad],
        max_bad=max_bad,
        **more,
    )


@submit.command("all")
@click.argument("dataset")
@prepare_options
@click.option(
    "--parts", type=click.IntRange(min=1), default=1, show_default=True,
    help="Tasks to share the preparation.",
)  # fmt: skip
@shard_option
@training_options
@_shape_options
@_job_options
def everything(
    dataset: str,
    parts: int,
    at_once: int | None,
    gpus: int,
    nodes: int,
    processes: int | None,
    starts: int,
    site: Path | None,
    dry_run: bool,
    **asked: Any,
) -> None:
    """Prepare DATASET, train on it, fuse the networks and write a report.

    It takes all that `submit prepare` and `submit train` take. What follows the preparation is
    submitted by a job that waits for it; the ensemble starts when all training tasks have ended,
    well or not.

    Example: spectral submit all cifar10 --source DIR --splits 4 --time 4:00:00
    """
    context, sbatch = click.get_current_context(), list(asked["sbatch"])
    wanted = _site(site, asked)
    from trainer.cluster.chain import Chain
    from trainer.cluster.chain import everything as run
    from trainer.cluster.script import Shape
    from trainer.cluster.submit import Order, check_shape
    from trainer.data.selection import runs_root
    from trainer.jobs.asked import keep_plan, runs_asked_for

    shape = Shape(nodes=nodes, gpus=gpus, processes=processes or max(1, gpus))
    check_shape(shape)
    root = runs_root(asked["runs"]).absolute()
    training = {name: asked.pop(name) for name in _names(shard_option, training_options)}
    training |= {"runs": root, "shards": training["shards"] or _all_unless(training["plan_file"])}
    words = _said(
        context, {*context.params} - {"dataset", "sbatch", "dry_run", "runs"} - {*_PLACES}
    )
    preparing = _said(context, {*asked} - {*_PLACES, "max_bad"})
    preparation = _preparation(
        dataset, asked, preparing, count=parts, site=wanted, at_once=at_once, dry_run=dry_run
    )
    places = [*preparation.words[1:5], "--runs", str(root)]

    def runs() -> Any:
        prepared, specs = runs_asked_for(data=preparation.directory, **training)
        if not dry_run:
            keep_plan(specs, training["plan_file"])
        return prepared, specs

    chain = Chain(
        preparation=preparation,
        training=Order(root=root, site=wanted, shape=shape, at_once=at_once, starts=starts,
                       dry_run=dry_run),
        words=["submit", "all", dataset, *places, *words, *["--", *sbatch] * bool(sbatch)],
        runs=runs,
    )  # fmt: skip
    for line in run(chain):
        click.echo(line)


def _all_unless(plan: Path | None) -> str | None:
    return None if plan else "all"


def _names(*options: Any) -> list[str]:
    """What the values of options are called."""
    params = click.command()(apply(*options)(lambda: None)).params
    return [param.name for param in params if param.name]


@submit.command()
@data_options
@click.option("--recipe", help="Which recipe's networks, if several were trained.")
@runs_option
@click.option("--gpus", type=click.IntRange(min=0), default=1, show_default=True)
@_job_options
def ensemble(
    data: Path | None,
    recipe: str | None,
    runs: Path | None,
    gpus: int,
    site: Path | None,
    dry_run: bool,
    **asked: Any,
) -> None:
    """Fuse the networks of one recipe, once all of its jobs have ended, well or not.

    Example: spectral submit ensemble --dataset imagenet1k --time 1:00:00
    """
    wanted = _site(site, asked)
    from trainer.cluster.script import Shape
    from trainer.cluster.submit import Order
    from trainer.cluster.submit import ensemble as run
    from trainer.data.selection import runs_root, select
    from trainer.fusion.members import select_group

    prepared = select(data, **asked)
    root = runs_root(runs)
    order = Order(root=root, site=wanted, shape=Shape(gpus=gpus), dry_run=dry_run)
    for line in run(select_group(root / prepared.described, recipe), prepared, order):
        click.echo(line)


def _said(context: click.Context, names: Iterable[str]) -> list[str]:
    """The options of these names that stand on the command line, as they have to be said again."""
    words = []
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if param.name in names and source is ParameterSource.COMMANDLINE:
            value = context.params[param.name]
            if isinstance(param, click.Option) and param.is_flag:
                words.append(param.opts[0])
            elif isinstance(value, tuple):
                words += [word for one in value for word in (param.opts[0], str(one))]
            else:
                words += [param.opts[0], "all" if value is True else str(value)]
    return words


@click.command(cls=PlainCommand)
@click.argument("words", nargs=-1)
@runs_option
@click.option(
    "--data",
    type=PATH,
    help="Where data sets live that are prepared in parts [default: $SPECTRAL_DATA, else ./data].",
)
@click.option("--watch", is_flag=True, help=f"Say it again every {WATCHED} s, until Ctrl-C.")
@json_option
def status(
    words: tuple[str, ...], runs: Path | None, data: Path | None, watch: bool, as_json: bool
) -> None:
    """Say where all runs stand: how far, how good, running, in the queue, or why not; and which
    parts of a preparation are missing.

    WORDS choose: those whose folders, shard or state hold all of them. Where there is a Slurm, its
    queue is asked too. Nothing is written.

    Example: spectral status cifar10 failed
    """
    from trainer.cluster.standing import parts_left, standing
    from trainer.data.selection import data_root, runs_root
    from trainer.reports.runs import table

    root = runs_root(runs)
    while True:
        preparing = parts_left(data_root(data), words)
        found = standing(root, words) if root.is_dir() or not preparing else []
        if watch and not as_json:
            click.clear()
        click.echo(
            json.dumps([run.row() for run in found], indent=1)
            if as_json
            else "\n".join([table(found, root), *preparing] if found else preparing)
            or table(found, root)
        )
        if not watch:
            return
        time.sleep(WATCHED)


@click.command(cls=PlainCommand, hidden=True)
@click.argument("run", type=PATH)
@click.argument("status", type=int)
@click.option("--starts", type=click.IntRange(min=1), default=STARTS)
def again(run: Path, status: int, starts: int) -> None:
    """Whether the task of RUN, which ended with STATUS, goes back into the queue: 0 yes, 1 no."""
    from trainer.cluster.again import check

    click.echo(check(run, status, starts))
