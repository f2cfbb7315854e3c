"""What the commands that train, and use what was trained, share: options and the log."""

import logging
from collections.abc import Collection, Iterable, Sequence
from io import StringIO

import click

from pipeline.console import PATH, Echo, apply

METHODS = ("learned", "average", "geometric", "single-best", "subset")  # to fuse networks
OVER = ("logits", "probabilities")  # that are fused
FORMS = ("table", "csv", "jsonl")  # of predictions
EXPORTS = ("safetensors", "onnx", "pt2")  # forms of a classifier for others
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")  # that curves are sent to
_WIDTH = 1000  # characters: lines are never broken, so that they can be searched

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
shard_option = click.option("--shard", "shards", help="7, 0-3, 3,5, all; 0+1+2: together.")
# How runs are carried out
training_options = apply(
    click.option("--recipe", help="A recipe's name or file [default: the data set's]."),
    click.option("--model", help="Its network: see `spectral networks`; --set model=… in short."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a value of the recipe, e.g. optimizer.lr=0.05; may be repeated.",
    ),
    click.option("--name", help="Folder of the runs, in place of RECIPE+KEY=VALUE…."),
    click.option(
        "--plan",
        "plan_file",
        type=PATH,
        help="Shards, epochs and recipe of a file that `spectral plan` has written.",
    ),
    click.option(
        "--init", type=PATH, help="Start from these weights: our, torchvision's or timm's file."
    ),
    click.option("--init-shard", type=int, help="Start from the best weights of this shard."),
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
    click.option("--log-to", type=click.Choice(TRACKERS), help="Send the curves there too."),
    click.option(
        "--stage",
        type=PATH,
        help="Read the shard from a copy in this folder of the node's own disk.",
    ),
    click.option("--seeds", type=click.IntRange(min=1), default=1, help="So many of each."),
    runs_option,
)
run_options = apply(shard_option, data_options, training_options)
# How many at a time on this machine
parallel_options = apply(
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


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str]
) -> list[str]:
    """Lines for people, under a head; figures stand to the `right` of their columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        side = "right" if column in right else "left"
        found.add_column(column, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        found.add_row(*map(Text, row))
    lines = StringIO()
    Console(file=lines, width=_WIDTH, color_system=None).print(found)
    return [line.rstrip() for line in lines.getvalue().splitlines()]


def show_log(*, verbose: bool) -> None:
    """Write what our packages log to standard error; with `verbose` that of all others too."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[Echo()], force=True)
    for package in ("pipeline", "trainer"):
        logging.getLogger(package).setLevel(logging.INFO)
