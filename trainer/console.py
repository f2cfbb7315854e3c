"""The options of the commands that train and use what was trained, and how they go on to jobs."""

import click
from click.core import ParameterSource

from pipeline.console import PATH, apply

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
