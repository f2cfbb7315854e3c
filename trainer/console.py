"""What the commands that train, and use what was trained, share: options and the log."""

import logging

import click

from pipeline.console import PATH, Echo, apply

METHODS = ("learned", "average", "geometric", "single-best", "subset")  # to fuse networks
OVER = ("logits", "probabilities")  # that are fused
FORMS = ("table", "csv", "jsonl")  # of predictions
EXPORTS = ("safetensors", "onnx", "pt2")  # forms of a classifier for others
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


def show_log(*, verbose: bool) -> None:
    """Write what our packages log to standard error; with `verbose` that of all others too."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[Echo()], force=True)
    for package in ("pipeline", "trainer"):
        logging.getLogger(package).setLevel(logging.INFO)
