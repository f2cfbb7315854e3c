"""What the commands share: errors in one line, log lines, progress; the options of `prepare`."""

import io
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
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
from pipeline.errors import (
    OutputError,
    SpectralError,
    StoppedError,
    describe,
    out_of_memory,
    printable_lines,
)

Command = Callable[..., Any]


class _Seconds(click.FloatRange):
    """Without NaN, which is in no range and outside of none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does."""
        seconds = super().convert(value, param, ctx)
        return self.fail(f"{value} is no number", param, ctx) if math.isnan(seconds) else seconds


class _Output:
    """Standard output, whose errors say that they are of it: Python's name no file, and a full disk
    there is not that of the shards.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As of a file."""
        with self._own_errors():
            return int(self._stream.write(text))

    def flush(self) -> None:
        """As of a file."""
        with self._own_errors():
            self._stream.flush()

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise OutputError from error
            raise OutputError(
                f"standard output cannot be written ({error.strerror}): free some space there, or "
                "send it elsewhere"
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _PlainErrors(click.Command):
    """Turns what a user can cause into one line and exit status 1: here and nowhere else."""

    def main(self, *args: Any, **more: Any) -> Any:
        """Run the command line."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal may lack what a name has, or "–"
                stream.reconfigure(errors="replace")
        try:
            with redirect_stdout(sys.stdout and _Output(sys.stdout)):  # None where it is closed
                return super().main(*args, **more)
        except (Exception, StoppedError) as error:
            said = _said(error)
            if said is None:
                raise
            if said:  # nobody is told that a pipe was closed
                click.echo(f"Error: {printable_lines(said)}", err=True)
            if isinstance(error, OutputError):
                _drop_output()
            if out_of_memory(error) is not None:
                os._exit(1)  # what libraries do at the end takes memory, or crashes without
            sys.exit(getattr(error, "exit_status", 1))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click takes an interruption for something else."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Error: interrupted; run the same command again to go on", err=True)
            ctx.exit(130)


def _drop_output() -> None:
    """What is left in the buffer of standard output would fail once more at the end."""
    with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _said(error: BaseException) -> str | None:
    """For people; None of an error of our own."""
    if (said := out_of_memory(error)) is not None:
        return said
    if isinstance(error, SpectralError | StoppedError):
        return str(error)
    return describe(error) if isinstance(error, OSError) else None


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


class Echo(logging.Handler):
    """Log lines to standard error as it is at the time: a progress bar stands in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        try:
            click.echo(printable_lines(self.format(record)), err=True)
        except OSError:  # nobody reads on, or its disk is full: no reason to end work of days
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
