"""What the commands share: errors in one line, log lines, progress; the options of `prepare`."""

import errno
import io
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from pipeline.choices import (
    CALIB,
    CODECS,
    IMAGE_SECONDS,
    LAYOUTS,
    RESIZES,
    TRANSFORMS,
    default_codec,
)
from pipeline.errors import SpectralError, StoppedError, describe

Command = Callable[..., Any]


class _Seconds(click.FloatRange):
    """Without NaN, which is in no range and outside of none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does."""
        seconds = super().convert(value, param, ctx)
        return self.fail(f"{value} is no number", param, ctx) if math.isnan(seconds) else seconds


class _PlainErrors(click.Command):
    """Turns what a user can cause into one line and exit status 1: here and nowhere else."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal may lack what a name has, or "–"
                stream.reconfigure(errors="replace")
        try:
            return super().invoke(ctx)
        except (SpectralError, StoppedError) as error:
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


class Group(_PlainErrors, click.Group):
    """The command that has the others under it."""


class PlainCommand(_PlainErrors):
    """A command that stands alone."""


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """StoppedError for the signals that Slurm sends before it takes a node."""
    numbers = StoppedError.signals

    def stop(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        name = signal.Signals(number).name
        raise StoppedError(f"stopped by {name}; run the same command again to go on")

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def printable(text: str) -> str:
    r"""On one line and without control characters, which become `\n`, `\x1b` and the like."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


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


class NonEmptyPath(click.Path):
    """An empty path would be the current folder: a variable that was not set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does, but nothing is not the current folder."""
        if value == "":
            self.fail("the path is empty: is a variable not set?", param, ctx)
        return super().convert(value, param, ctx)


def _choice(name: str, values: tuple[str, ...], what: str) -> Callable[[Command], Command]:
    return click.option(name, type=click.Choice(values), help=f"{what} [default: {values[0]}].")


PATH = NonEmptyPath(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
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
    _choice("--transform", TRANSFORMS, "Across the phases of an image"),
    _choice("--layout", LAYOUTS, "What a phase is"),
    click.option(
        "--codec",
        type=click.Choice(CODECS),
        help="How shards store: planes zstd or raw, with --splits 1 images jpeg or raw "
        f"[default: {default_codec(4)}, {default_codec(1)}].",
    ),
    click.option(
        "--step",
        type=float,
        help="Quantiser step in grey levels [default: by splits and transform].",
    ),
    _choice("--resize", RESIZES, "How an image becomes a square, or keeps its aspect"),
    click.option(
        "--calib", type=float, help=f"Share of train kept for fusion [default: {CALIB:g}]."
    ),
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
    click.option(
        "--image-timeout",
        type=_Seconds(min=0, min_open=True),
        default=IMAGE_SECONDS,
        show_default=True,
        metavar="SECONDS",
        help="An image that takes longer cannot be used.",
    ),
    click.option("--overwrite", is_flag=True, help="Remove what is there and start over."),
    click.option(
        "--part",
        metavar="K/N",
        help="Only the K-th of N parts, which other machines share; then `spectral merge`. 0/N: "
        "list the source.",
    ),
    click.option(
        "--report-bad", is_flag=True, help="List the images that cannot be used, and why."
    ),
)


def progress_display(quiet: bool) -> Any:
    """The progress display that long work is given; none where standard output is JSON."""
    from contextlib import nullcontext

    from pipeline.progress import progress

    return (lambda what, total, unit: nullcontext(lambda count, note: None)) if quiet else progress
