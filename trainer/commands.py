"""The commands that make a classifier of trained networks, measure it and use it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pipeline.console import PATH, json_option, progress_display
from pipeline.errors import SourceError
from trainer.console import EXPORTS, FORMS, METHODS, OVER, data_options, runs_option

_recipe_option = click.option("--recipe", help="Which recipe's networks, if several were trained.")


@click.command()
@data_options
@_recipe_option
@click.option("--shard", "shards", help="Only these networks: 0,1,3; 0+1 [default: all].")
@click.option(
    "--method", type=click.Choice(METHODS), default=METHODS[0], show_default=True,
    help="What predictions are made with; all are measured.",
)  # fmt: skip
@click.option(
    "--over", type=click.Choice(OVER), default=OVER[0], show_default=True,
    help="What all methods but learned pool.",
)  # fmt: skip
@click.option(
    "--calib-samples", type=click.IntRange(min=1), default=10_000, show_default=True,
    help="Samples that weights are fitted on, at most; chosen by their ids.",
)  # fmt: skip
@click.option("--flip", is_flag=True, help="Networks see mirror images too, where exact.")
@click.option("--published", is_flag=True, help="Also as published: ranked on val, which leaks.")
@click.option(
    "--q", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.3,
    show_default=True, help="Of --published: weights q(1-q)^rank.",
)  # fmt: skip
@click.option(
    "--against", type=PATH, multiple=True,
    help="Compare with another group of runs, or a run, image by image; may be repeated.",
)  # fmt: skip
@runs_option
@json_option
def ensemble(
    data: Path | None,
    recipe: str | None,
    shards: str | None,
    method: str,
    over: str,
    calib_samples: int,
    flip: bool,
    published: bool,
    q: float,
    against: tuple[Path, ...],
    runs: Path | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Fuse the trained networks of one recipe, and measure every way to do so.

    Weights and temperatures are fitted on calib; val, and test where there is one, are only
    reported on. Networks that are not there yet are named and left out.

    Example: spectral ensemble --dataset cifar10 --splits 4
    """
    from trainer.data.selection import parse_shards, runs_root, select
    from trainer.fusion.ensemble import Options, add_comparisons
    from trainer.fusion.ensemble import ensemble as run
    from trainer.fusion.members import select_group
    from trainer.process.device import pick_device
    from trainer.reports.report import table

    prepared = select(data, **wanted)
    group = select_group(runs_root(runs) / prepared.described, recipe)
    splits = prepared.manifest.preparation.splits
    options = Options(
        method=method,
        over=over,
        calib_samples=calib_samples,
        flip=flip,
        published_q=q if published else None,
        planes=None if shards is None else parse_shards(shards, splits),
    )
    result = run(prepared, group, pick_device(), progress_display(as_json), options)
    if against:
        from trainer.fusion.evaluate import against as compared

        rows = [compared(group, result, other, progress_display(as_json)) for other in against]
        add_comparisons(group, result, rows)
    click.echo(json.dumps(result, indent=1) if as_json else table(result))


@click.command()
@click.argument("path", metavar="RUN|GROUP|EXPORTED", type=PATH)
@data_options
@click.option("--split", default="val", show_default=True, help="What to measure on.")
@click.option("--method", type=click.Choice(METHODS), help="In place of the group's own.")
@json_option
def evaluate(
    path: Path, data: Path | None, split: str, method: str | None, as_json: bool, **wanted: Any
) -> None:
    """Measure a classifier on prepared data, be it other than that of its training.

    Its classes are found by name; if they are some of the classifier's, answers are among these.

    Example: spectral evaluate runs/imagenet1k/sub4/resnet34 --data data/imagenetv2/sub4
    """
    from trainer.data.selection import select
    from trainer.fusion.classifier import FusedClassifier
    from trainer.fusion.evaluate import evaluate as run
    from trainer.reports.report import evaluation_table

    prepared = select(data, **wanted)
    classifier = FusedClassifier.load(path, method=method)
    result = run(classifier, prepared, split, progress_display(as_json))
    click.echo(json.dumps(result, indent=1) if as_json else evaluation_table(result))


@click.command()
@data_options
@click.option("--pilot", required=True, help="Recipe or --name of the pilot's runs.")
@click.option("--epochs", type=click.IntRange(min=1), required=True, help="Of all runs together.")
@click.option("--recipe", required=True, help="A recipe's name or file, for the runs planned.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As of train.")
@click.option("--name", default="plan", show_default=True, help="Folder of the runs.")
@click.option(
    "--out", type=PATH, default=Path("plan.toml"), show_default=True, help="Write it there."
)
@runs_option
def plan(
    data: Path | None,
    pilot: str,
    epochs: int,
    recipe: str,
    settings: tuple[str, ...],
    name: str,
    out: Path,
    runs: Path | None,
    **wanted: Any,
) -> None:
    """Plan the training of planes from a pilot: a few epochs of each.

    The plane that is best alone is trained first and gets half of the epochs; the others start
    from its weights and share the rest by what they add; those that add nothing are left out.
    The plan is a file to read and change, for `spectral train --plan`.

    Example: spectral plan --splits 4 --pilot pilot --recipe ours/air --epochs 40
    """
    from trainer.data.selection import runs_root, select
    from trainer.fusion.members import select_group
    from trainer.fusion.plan import make_plan
    from trainer.process.device import pick_device
    from trainer.recipes.cookbook import resolve

    prepared = select(data, **wanted)
    resolve(recipe, settings)  # an error of theirs now, rather than when they are trained
    group = select_group(runs_root(runs) / prepared.described, pilot)
    made, remarks = make_plan(
        prepared, group, pick_device(), progress_display(False), epochs=epochs, recipe=recipe,
        settings=settings, name=name,
    )  # fmt: skip
    out.write_text(made.toml(remarks), encoding="utf-8")
    click.echo(remarks)
    for run in made.runs:
        after = f", from the weights of shard {run.after}" if run.after else ""
        click.echo(f"shard {run.shard}: {run.epochs} epochs{after}")
    click.echo(f"wrote {out}: spectral train --plan {out}")


@click.command()
@click.argument("path", metavar="RUN|GROUP|EXPORTED", type=PATH)
@click.option("--to", type=PATH, help="The folder to write; it must not be there yet.")
@click.option(
    "--format", "form", type=click.Choice(EXPORTS), default=EXPORTS[0], show_default=True,
    help="safetensors: for this tool; onnx: for ONNX Runtime; pt2: for torch.export.load.",
)  # fmt: skip
@click.option(
    "--hub-folder", type=PATH,
    help="In place of --to: safetensors with a model card, for the Hugging Face Hub.",
)  # fmt: skip
@click.option(
    "--license", "licence", default="other", show_default=True,
    help="Of the weights, for the model card: apache-2.0, cc-by-nc-4.0, …",
)  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), help="In place of the group's own.")
def export(
    path: Path,
    to: Path | None,
    form: str,
    hub_folder: Path | None,
    licence: str,
    method: str | None,
) -> None:
    """Write the fused classifier for others, as a folder that is whole or absent.

    safetensors: FusedClassifier.load, predict and evaluate take the folder. onnx, pt2: uint8 images
    (B, H, W, C), resized as preprocess.py beside it does, in; probabilities out. It is compared
    with the classifier, and written only if they agree.

    Example: spectral export runs/imagenet1k/sub4/resnet34 --to out --format onnx
    """
    from trainer.export.command import export_program, export_weights

    if (to is None) == (hub_folder is None):
        raise click.UsageError("say where to: --to DIR, or --hub-folder DIR")
    if hub_folder is not None and form != EXPORTS[0]:
        raise click.UsageError(f"--hub-folder holds safetensors: leave out --format {form}")
    if hub_folder is not None:
        lines = export_weights(path, hub_folder, method, licence, progress_display(False))
    elif form == EXPORTS[0]:
        assert to is not None
        lines = export_weights(path, to, method, None, progress_display(False))
    else:
        assert to is not None
        lines = export_program(path, to, form, method, progress_display(False))
    for line in lines:
        click.echo(line)


@click.command()
@click.argument("images", metavar="IMAGE|FOLDER|PATTERN|-…", nargs=-1, required=True)
@click.option("--dataset", help="Choose among trained classifiers by data set.")
@_recipe_option
@runs_option
@click.option("--method", type=click.Choice(METHODS), help="In place of the classifier's own.")
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes to print."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=64, show_default=True,
    help="Images that the networks see at a time.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(FORMS), default=FORMS[0], show_default=True,
    help="jsonl: one JSON object a line.",
)  # fmt: skip
def predict(
    images: tuple[str, ...],
    dataset: str | None,
    recipe: str | None,
    runs: Path | None,
    method: str | None,
    top: int,
    batch_size: int,
    form: str,
) -> None:
    """Classify images with the fused network, or with a single run (--runs RUN).

    Files, folders with all below them, quoted patterns, or - for names on standard input. As in
    training, the EXIF orientation is ignored. An image that cannot be used has a row with its
    error, and the exit status is 1 at the end.

    Example: spectral predict photos/ --format csv --top 1
    """
    from pipeline.errors import first_few
    from trainer.data.selection import runs_root
    from trainer.fusion.classifier import FusedClassifier
    from trainer.fusion.predict import find_images, lines, predictions, select_classifier

    paths = find_images(images)
    where = select_classifier(runs_root(runs), dataset, recipe)
    classifier = FusedClassifier.load(where, method=method)
    display, errors = progress_display(len(paths) <= batch_size), []
    found = predictions(classifier, paths, top, batch_size, display)

    def noted() -> Iterator[Any]:
        for path, guesses in found:
            if isinstance(guesses, SourceError):
                errors.append(str(guesses))
            yield path, guesses

    for line in lines(noted(), form, top):
        click.echo(line)
    if errors:
        raise SourceError(
            f"{len(errors)} of {len(paths)} images were not classified:\n  {first_few(errors)}"
        )
