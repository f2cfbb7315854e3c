"""The command line: each command parses its options and calls one function elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pipeline import __version__
from pipeline.console import (
    PATH,
    Group,
    json_option,
    prepare_options,
    progress_display,
    stopped_by_signals,
)
from pipeline.errors import ConfigError, DamagedError, printable
from trainer.cluster.commands import again, status, submit
from trainer.commands import ensemble, evaluate, export, plan, predict
from trainer.console import parallel_options, run_options, show_log
from trainer.run.worker import worker


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spectral")
@click.option("-v", "--verbose", is_flag=True, help="Say more of what is done.")
def main(verbose: bool) -> None:
    """Train ImageNet-size classifiers without a big machine.

    \b
    spectral prepare imagenet21k --source DIR --splits 36   once, offline, CPU only
    spectral train --shard 7                                36 independent jobs
    spectral ensemble                                       one fused classifier, measured
    """  # noqa: D301 - click wants the control character
    show_log(verbose=verbose)


main.add_command(worker)


@main.command()
@json_option
def datasets(as_json: bool) -> None:
    """List the known data sets, with sizes and where to get them.

    Any other name works too: spectral prepare NAME --source DIR --size S

    Example: spectral datasets
    """
    from dataclasses import asdict

    from pipeline.catalogue import catalogue

    specs = catalogue().values()
    if as_json:
        click.echo(json.dumps([asdict(spec) for spec in specs], indent=1))
        return
    for spec in specs:
        click.echo("\n".join(spec.lines()))


@main.command()
@click.argument("dataset")
@prepare_options
@json_option
def prepare(
    dataset: str,
    source: Path | None,
    splits: int,
    out: Path | None,
    workers: int | None,
    max_bad: int | None,
    image_timeout: float,
    overwrite: bool,
    report_bad: bool,
    part: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Resize DATASET once and split every image into spectral shards.

    Each image is decoded once; shard k holds plane k of every image. Interrupted, the same
    command goes on; run again after the end, it says that it is finished.

    Example: spectral prepare cifar10 --source cifar10/ --splits 4
    """
    import os

    with stopped_by_signals():  # from here on, as the imports take a while
        from pipeline.inspection.inspect import bad_images, bad_lines, describe, lines
        from pipeline.preparation import preparation
        from pipeline.stage.part import prepare_part
        from pipeline.stage.prepare import prepare as run

        prep = preparation(dataset, splits, **options)
        source = source or Path(os.environ.get("SPECTRAL_SOURCES", "sources")) / dataset
        out = out or Path(os.environ.get("SPECTRAL_DATA", "data"))
        if part is not None:
            if overwrite:
                raise ConfigError(
                    "--overwrite with --part: remove the directory, once for all parts"
                )
            made = prepare_part(
                prep,
                source,
                out,
                part,
                workers=workers or len(os.sched_getaffinity(0)),
                max_bad=max_bad,
                progress=progress_display(as_json),
                image_seconds=image_timeout,
            )
            click.echo(json.dumps(made.row()) if as_json else made.said)
            return
        done = run(
            prep,
            source,
            out,
            workers=workers or len(os.sched_getaffinity(0)),
            max_bad=max_bad,
            progress=progress_display(as_json),
            overwrite=overwrite,
            image_seconds=image_timeout,
        )
        found = describe(done.directory)
        if report_bad:
            found["bad"] = bad_images(done.directory)
        if as_json:
            click.echo(json.dumps(found, indent=1))
            return
        click.echo("already finished:" if done.existed else "finished:")
        click.echo("\n".join(lines(found)))
        if report_bad:
            click.echo("\n".join(bad_lines(found["bad"])))


@main.command()
@click.argument("directory", type=PATH)
@click.option("--max-bad", type=click.IntRange(min=0), help="As of prepare, over all parts.")
@json_option
def merge(directory: Path, max_bad: int | None, as_json: bool) -> None:
    """Make one prepared DIRECTORY of its parts, see prepare --part.

    Every part is checked; those that are missing are named as an array of Slurm's. The bytes are
    those that one machine would have written. Interrupted, the same command goes on.

    Example: spectral merge data/imagenet21k/sub36
    """
    with stopped_by_signals():
        from pipeline.inspection.inspect import describe, lines
        from pipeline.stage.merge import merge as run

        _, existed = run(directory, max_bad, progress_display(as_json))
        found = describe(directory)
        if as_json:
            click.echo(json.dumps(found, indent=1))
            return
        click.echo("already finished:" if existed else "finished:")
        click.echo("\n".join(lines(found)))


@main.command()
@click.argument("path", type=PATH)
@click.option("--bad", is_flag=True, help="List the images that could not be used, and why.")
@json_option
@click.option("--png", type=PATH, help="Write a contact sheet of planes and rebuilt images.")
def inspect(path: Path, bad: bool, as_json: bool, png: Path | None) -> None:
    """Say what a beton or a prepared directory is and holds.

    Example: spectral inspect data/cifar10/sub4 --png sheet.png
    """
    from pipeline.inspection.inspect import bad_images, bad_lines, describe, lines

    if png is not None and png.suffix.lower() != ".png":
        raise click.BadParameter(f"{png} does not end in .png", param_hint="--png")
    found = describe(path)
    if bad:
        found["bad"] = bad_images(path)
        if not as_json:
            click.echo("\n".join(bad_lines(found["bad"])))
            return
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(lines(found)))
    if png is not None:
        from pipeline.inspection.sheet import draw

        draw(path, png)
        click.echo(f"wrote {png}", err=True)


@main.command()
@click.argument("directory", type=PATH)
@click.option("--shard", type=int, help="Only what a job that trains this shard reads.")
@click.option("--quick", is_flag=True, help="Sizes, tables and labels alone, in seconds.")
def verify(directory: Path, shard: int | None, quick: bool) -> None:
    """Name what is damaged in a prepared directory.

    Re-reads every file against the digests in its manifest, and compares what manifest, shards and
    samples.parquet say, labels included.

    Example: spectral verify data/imagenet1k/sub36 --shard 7
    """
    from pipeline.stage.verify import verify as run

    if damaged := run(directory, progress_display(False), shard=shard, quick=quick):
        raise DamagedError(
            f"{len(damaged)} damaged: " + "\n  ".join(damaged) + "\ncopy these files again from "
            "where they are whole, or prepare with --overwrite"
        )
    which = "all files are" if shard is None else f"manifest and shard {shard} are"
    how = "there, with their sizes and structure" if quick else "as they were written"
    click.echo(printable(f"{directory}: {which} {how}"))


@main.command()
@run_options
@parallel_options
@click.option("--dry-run", is_flag=True, help="Say what would be trained; write nothing.")
def train(
    gpus: int | None, jobs_per_gpu: int | None, jobs: int | None, dry_run: bool, **asked: Any
) -> None:
    """Train one ordinary network per shard.

    Several shards run in processes of their own, one on each GPU at a time; those that fail are
    named at the end. A finished run is left as it is. An unfinished one goes on from its last
    checkpoint; SIGTERM, SIGUSR1 and SIGUSR2 make it write one and end with status 75.

    Example: spectral train --shard 0-3 --dataset cifar10 --splits 4 --set epochs=10
    """
    from trainer.process.stop import leave_when_asked

    leave_when_asked()
    from trainer.jobs.asked import keep_plan, runs_asked_for
    from trainer.jobs.dryrun import dry_run as rehearse
    from trainer.jobs.shards import run_specs, spread_of
    from trainer.jobs.slots import Wanted

    prepared, specs = runs_asked_for(**asked)
    if dry_run:
        lines: Iterator[str] = (line for spec in specs for line in rehearse(spec))
    else:
        keep_plan(specs, asked["plan_file"])
        parallel = Wanted(gpus=gpus, jobs_per_gpu=jobs_per_gpu, jobs=jobs)
        lines = run_specs(specs, prepared, parallel, progress_display(False))
    for line in lines:
        click.echo(line)
    if asked["seeds"] > 1 and not dry_run:
        shards = len(specs) // asked["seeds"]
        for at in range(shards):
            click.echo(spread_of(specs[at::shards], prepared))


@main.command()
@click.argument("words", nargs=-1)
@json_option
def recipes(words: tuple[str, ...], as_json: bool) -> None:
    """List the recipes that come with the tool, or show one.

    WORDS choose: those whose line of the list holds all of them. `show NAME` prints all values of
    one recipe and the file that each is from. --json prints names; of one, values and origins.

    \b
    Example: spectral recipes cifar-zoo cosine
             spectral recipes show cifar-zoo/batch-size@4096-lr1.6-800
    """  # noqa: D301 - click wants the control character
    from trainer.recipes.browse import chosen, shown, table, values

    if words[:1] == ("show",):
        if len(words) != 2:
            raise click.UsageError("show takes the NAME of one recipe")
        click.echo(json.dumps(values(words[1]), indent=1) if as_json else shown(words[1]))
        return
    rows = chosen(words)
    click.echo(json.dumps([row[0] for row in rows], indent=1) if as_json else table(rows))


@main.command()
@click.argument("words", nargs=-1)
@json_option
def networks(words: tuple[str, ...], as_json: bool) -> None:
    """List the networks that `train --model` takes, with their parameters.

    WORDS choose: those whose names hold all of them, of ours and of timm's.

    Example: spectral networks vit tiny
    """
    from trainer.models.listing import shown, values

    click.echo(json.dumps(values(words), indent=1) if as_json else shown(words))


@main.command()
@click.argument("group", type=PATH)
@click.option(
    "--data", type=PATH, help="The prepared directory, for pictures [default: as trained on]."
)
@click.option(
    "--out", type=PATH, default=Path("report.html"), show_default=True, help="Write it there."
)
def report(group: Path, data: Path | None, out: Path) -> None:
    """Write what is known of a fused classifier as one HTML page.

    GROUP is the folder of the runs of one recipe, after `spectral ensemble`.

    Example: spectral report runs/cifar10/sub4/cifar-resnet20
    """
    from trainer.fusion.members import data_of
    from trainer.reports.page import write_report

    directory = data or data_of(group)
    samples = sheet = None
    if directory is not None:
        from pipeline.inspection.pictures import Pictures

        pictures = Pictures(directory)
        samples, sheet = pictures.samples, pictures.sheet()
    size = write_report(group, out, samples, sheet)
    click.echo(f"wrote {out} ({size / 1e6:.1f} MB)", err=True)


@main.command()
@click.argument("paths", metavar="RUN…", type=PATH, nargs=-1, required=True)
@click.option(
    "--png", type=PATH, default=Path("plot.png"), show_default=True, help="Write it there."
)
def plot(paths: tuple[Path, ...], png: Path) -> None:
    """Draw loss, learning rate and accuracy of runs over their steps.

    RUN is a run's directory, or a folder above several.

    Example: spectral plot runs/cifar10/sub4 --png loss.png
    """
    from trainer.reports.plot import draw

    if png.suffix.lower() != ".png":
        raise click.BadParameter(f"{png} does not end in .png", param_hint="--png")
    count = draw(paths, png)
    click.echo(f"wrote {png} ({count} run{'s' * (count > 1)})", err=True)


@main.command()
@click.option(
    "--out",
    type=PATH,
    default=Path("demo"),
    show_default=True,
    help="Folder for images, shards, runs and the picture.",
)
@click.option("--json", "json_file", type=PATH, help="Write the table there.")
def demo(out: Path, json_file: Path | None) -> None:
    """The whole line on handwritten digits, in minutes, on a CPU.

    Prepares sub4 and the unsplit baseline, trains five small networks, fuses, measures.

    Example: spectral demo
    """
    from pipeline.digits import write_digits
    from pipeline.preparation import preparation
    from pipeline.stage.prepare import prepare as prepare_data
    from trainer.demo import run

    images = write_digits(out / "images")
    for splits, codec in ((4, "zstd"), (1, "raw")):
        prepare_data(
            preparation("demo", splits, codec=codec, calib=0.15),
            images,
            out / "data",
            workers=2,
            max_bad=None,
            progress=progress_display(False),
        )
    click.echo(run(out, json_file, progress_display(False)))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands and options with the tab key.

    \b
    bash: eval "$(spectral completion bash)"     in ~/.bashrc
    zsh:  eval "$(spectral completion zsh)"      in ~/.zshrc
    fish: spectral completion fish | source      in ~/.config/fish/config.fish

    Example: spectral completion bash
    """  # noqa: D301 - click wants the control character
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # one of click's own
    click.echo(kind(main, {}, "spectral", "_SPECTRAL_COMPLETE").source())


for command in (submit, status, again, ensemble, evaluate, export, plan, predict):
    main.add_command(command)


if __name__ == "__main__":
    main()
