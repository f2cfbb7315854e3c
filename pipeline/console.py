"""What the commands share: errors in one line, log lines, progress, options in common."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.errors import SpectralError, describe

Command = Callable[..., Any]


class Group(click.Group):
    """Turns what a user can cause into one line and exit status 1: here and nowhere else."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SpectralError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_status)
        except OSError as error:
            if error.errno == errno.EPIPE:  # `spectral … | head`, which click knows how to end
                raise
            click.echo(f"Error: {describe(error)}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("Error: interrupted; run the same command again to go on", err=True)
            ctx.exit(130)


class Echo(logging.Handler):
    """Log lines to standard error as it is at the time: a progress bar stands in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        try:
            click.echo(self.format(record), err=True)
        except BrokenPipeError:  # nobody reads on: no reason to end work of days
            sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as long as we run


def apply(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several click options as one decorator, in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def arguments(ctx: click.Context, *, without: frozenset[str]) -> list[str]:
    """The command line that `ctx` was made from, but for the options `without`, by their names in
    Python; for a process that is to do a part of the same.
    """
    words = [*arguments(ctx.parent, without=without), ctx.command.name or ""] if ctx.parent else []
    for option in ctx.command.params:
        name = option.name or ""
        said = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if said and name not in without and isinstance(option, click.Option):
            value, flag = ctx.params[name], max(option.opts, key=len)
            values = value if option.multiple else [value]
            words += [flag] if option.is_flag else [f"{flag}={one}" for one in values]
    return words


class NonEmptyPath(click.Path):
    """An empty path would be the current folder: a variable that was not set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does, but nothing is not the current folder."""
        if value == "":
            self.fail("the path is empty: is a variable not set?", param, ctx)
        return super().convert(value, param, ctx)


PATH = NonEmptyPath(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
data_options = apply(
    click.option(
        "--data",
        type=PATH,
        help="A prepared directory, or a folder that holds some "
        "[default: $SPECTRAL_DATA, else ./data].",
    ),
    click.option("--dataset", help="Choose among prepared data sets by name."),
    click.option("--splits", type=int, help="Choose by number of shards."),
    click.option("--size", type=int, help="Choose by image size in px."),
    click.option("--transform", help="Choose by transform."),
    click.option("--layout", help="Choose by layout."),
    click.option("--codec", help="Choose by codec."),
)
runs_option = click.option(
    "--runs", type=PATH, help="Where runs live [default: $SPECTRAL_RUNS, else ./runs]."
)
# What is prepared from what, and how
prepare_options = apply(
    click.option(
        "--source",
        type=PATH,
        help="The data as you have them, see `spectral datasets` "
        "[default: $SPECTRAL_SOURCES/DATASET, else ./sources/DATASET].",
    ),
    click.option("--splits", type=int, required=True, help="Number of shards: 1, 4, 16, 36, …"),
    click.option(
        "--size", type=int, help="Side of the resized image in px [default: the data set's]."
    ),
    click.option(
        "--channels", type=int, help="1 (grey) or 3 (RGB) [default: the data set's, else 3]."
    ),
    click.option("--transform", help="dct, dct2 or none [default: dct]."),
    click.option("--layout", help="phase or block [default: phase]."),
    click.option("--codec", help="zstd or raw; with --splits 1 jpeg or raw [default: the first]."),
    click.option(
        "--step",
        type=float,
        help="Quantiser step in grey levels [default: by splits and transform].",
    ),
    click.option("--resize", help="squash, crop or shortest [default: squash]."),
    click.option("--calib", type=float, help="Share of train kept for fusion [default: 0.02]."),
    click.option(
        "--out", type=PATH, help="Where data sets live [default: $SPECTRAL_DATA, else ./data]."
    ),
    click.option(
        "--workers", type=click.IntRange(min=1), help="Processes [default: one per core]."
    ),
    click.option("--limit", type=int, help="At most so many images per split, spread evenly."),
    click.option(
        "--classes",
        "all_classes",
        type=click.Choice(["rule", "all"]),
        default="rule",
        show_default=True,
        callback=lambda ctx, param, value: value == "all",
        help="imagenet21k: the classes of 21K-P, or all.",
    ),
    click.option(
        "--test-split",
        is_flag=True,
        help="CIFAR and Tiny-ImageNet: the source's val becomes test, val is taken from train.",
    ),
    click.option(
        "--max-bad",
        type=click.IntRange(min=0),
        help="Unusable images tolerated [default: 0.1 %, at least 20].",
    ),
    click.option("--overwrite", is_flag=True, help="Remove what is there and start over."),
    click.option(
        "--report-bad", is_flag=True, help="List the images that cannot be used, and why."
    ),
)
# How a run is carried out, and how many at a time
execution_options = apply(
    click.option(
        "--feed",
        type=click.Choice(["auto", "stream", "resident"]),
        default="auto",
        show_default=True,
        help="Read the shard as it is needed, or hold it decoded in memory.",
    ),
    click.option(
        "--save-every", default="5m", show_default=True, help="Time (30s, 5m) or steps (500)."
    ),
    click.option(
        "--deterministic", is_flag=True, help="The same bits each time on a GPU too; slower."
    ),
    click.option("--compile", "compile_network", is_flag=True, help="Use torch.compile."),
    click.option("--tensorboard", is_flag=True, help="Write TensorBoard events too."),
    click.option("--gpus", type=click.IntRange(min=1), help="GPUs for each shard [default: 1]."),
    click.option(
        "--jobs-per-gpu",
        type=click.IntRange(min=1),
        help="Shards at a time on each GPU; they share its memory [default: 1].",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        help="Without a GPU: shards at a time; they share the cores [default: 1].",
    ),
)


def progress_display(quiet: bool) -> Any:
    """The progress display that long work is given; none where standard output is JSON."""
    from contextlib import nullcontext

    from pipeline.progress import progress

    return (lambda what, total, unit: nullcontext(lambda count, note: None)) if quiet else progress
