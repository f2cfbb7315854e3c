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
    printable,
    progress_display,
    stopped_by_signals,
)
from pipeline.errors import ConfigError, SourceError
from trainer.console import (
    EXPORTS,
    FORMS,
    METHODS,
    OVER,
    data_options,
    execution_options,
    runs_option,
    show_log,
)

_recipe_option = click.option("--recipe", help="Which recipe's networks, if several were trained.")


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
        sizes = [f"{spec.size} px"] + [f"{px} px for --splits {n}" for n, px in spec.sizes.items()]
        counts = ", ".join(f"{count:,} {split}" for split, count in spec.images.items())
        click.echo(f"{spec.name}: {spec.title}")
        click.echo(
            f"  {spec.classes:,} classes, {counts}; {', '.join(sizes)}; "
            f"{'grey' if spec.channels == 1 else 'RGB'}; recipe {spec.recipe}"
        )
        click.echo(f"  source: {', '.join(spec.layouts)}; get it: {spec.get}; terms: {spec.terms}")


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
        from pipeline.inspection.inspect import describe, lines
        from pipeline.preparation import preparation
        from pipeline.stage.prepare import prepare as run

        done = run(
            preparation(dataset, splits, **options),
            source or Path(os.environ.get("SPECTRAL_SOURCES", "sources")) / dataset,
            out or Path(os.environ.get("SPECTRAL_DATA", "data")),
            workers=workers or len(os.sched_getaffinity(0)),
            max_bad=max_bad,
            progress=progress_display(as_json),
            overwrite=overwrite,
            image_seconds=image_timeout,
        )
        found = describe(done.directory)
        if report_bad:
            found["bad"] = _bad(done.directory)
        if as_json:
            click.echo(json.dumps(found, indent=1))
            return
        click.echo("already finished:" if done.existed else "finished:")
        click.echo("\n".join(lines(found)))
        if report_bad:
            _echo_bad(found["bad"])


@main.command()
@click.argument("path", type=PATH)
@click.option("--bad", is_flag=True, help="List the images that could not be used, and why.")
@json_option
@click.option("--png", type=PATH, help="Write a contact sheet of planes and rebuilt images.")
def inspect(path: Path, bad: bool, as_json: bool, png: Path | None) -> None:
    """Say what a beton or a prepared directory is and holds.

    Example: spectral inspect data/cifar10/sub4 --png sheet.png
    """
    from pipeline.inspection.inspect import describe, lines

    if png is not None and png.suffix.lower() != ".png":
        raise click.BadParameter(f"{png} does not end in .png", param_hint="--png")
    found = describe(path)
    if bad:
        found["bad"] = _bad(path)
        if not as_json:
            _echo_bad(found["bad"])
            return
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(lines(found)))
    if png is not None:
        from pipeline.inspection.sheet import draw

        draw(path, png)
        click.echo(f"wrote {png}", err=True)


@main.command()
@click.argument("directory", type=PATH)
@click.option("--shard", type=int, help="Only what a job that trains this shard reads.")
@click.option("--quick", is_flag=True, help="Sizes and structure alone, in seconds.")
def verify(directory: Path, shard: int | None, quick: bool) -> None:
    """Name what is damaged in a prepared directory.

    Re-reads every file against the digests in its manifest.

    Example: spectral verify data/imagenet1k/sub36 --shard 7
    """
    from pipeline.errors import DamagedError
    from pipeline.stage.verify import verify as run

    if damaged := run(directory, progress_display(False), shard=shard, quick=quick):
        raise DamagedError(
            f"{len(damaged)} damaged: " + "\n  ".join(damaged) + "\ncopy these files again from "
            "where they are whole, or prepare with --overwrite"
        )
    which = "all files are" if shard is None else f"manifest and shard {shard} are"
    how = "there, with their sizes and structure" if quick else "as they were written"
    click.echo(f"{directory}: {which} {how}")


@main.command()
@click.option("--shard", "shards", required=True, help="7, 0-3, 3,5, all; 0+1+2: together.")
@data_options
@click.option("--recipe", help="A recipe's name or file [default: the data set's].")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the recipe, e.g. optimizer.lr=0.05; may be repeated.",
)
@click.option("--name", help="Folder of the runs, in place of RECIPE+KEY=VALUE….")
@click.option(
    "--init", type=PATH, help="Start from these weights: our, torchvision's or timm's file."
)
@click.option("--init-shard", type=int, help="Start from the best weights of this shard.")
@execution_options
@click.option("--dry-run", is_flag=True, help="Say what would be trained; write nothing.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, help="Train with so many seeds.")
@runs_option
def train(
    shards: str,
    data: Path | None,
    recipe: str | None,
    settings: tuple[str, ...],
    name: str | None,
    runs: Path | None,
    init: Path | None,
    init_shard: int | None,
    save_every: str,
    feed: str,
    deterministic: bool,
    compile_network: bool,
    tensorboard: bool,
    gpus: int | None,
    jobs_per_gpu: int | None,
    jobs: int | None,
    dry_run: bool,
    seeds: int,
    **wanted: Any,
) -> None:
    """Train one ordinary network per shard.

    Several shards run in processes of their own, one on each GPU at a time; those that fail are
    named at the end. A finished run is left as it is. An unfinished one goes on from its last
    checkpoint; SIGTERM and SIGUSR1 make it write one and end with status 75.

    Example: spectral train --shard 0-3 --dataset cifar10 --splits 4 --set epochs=10
    """
    from trainer.process.stop import leave_when_asked

    leave_when_asked()
    from trainer.data.selection import parse_shards, runs_root, select
    from trainer.jobs.dryrun import dry_run as rehearse
    from trainer.jobs.shards import make_specs, run_specs, spread_of, with_seeds
    from trainer.jobs.slots import Wanted
    from trainer.run.execution import Execution, Interval
    from trainer.run.spec import RunSpec

    prepared = select(data, **wanted)
    execution = Execution(
        feed=feed,
        save_every=Interval.parse(save_every),
        deterministic=deterministic,
        compile_network=compile_network,
        tensorboard=tensorboard,
    )
    numbers = parse_shards(shards, prepared.manifest.preparation.splits)

    def specs_of(changes: tuple[str, ...], folder: str | None) -> list[RunSpec]:
        return make_specs(
            prepared,
            numbers,
            recipe,
            changes,
            runs_root(runs),
            name=folder,
            init=init,
            init_shard=init_shard,
            execution=execution,
        )

    specs = specs_of(settings, name)
    if seeds > 1:
        each = with_seeds(settings, name, specs[0].recipe.seed, seeds)
        specs = [spec for changes, folder in each for spec in specs_of(changes, folder)]
    if dry_run:
        lines: Iterator[str] = (line for spec in specs for line in rehearse(spec))
    else:
        parallel = Wanted(gpus=gpus, jobs_per_gpu=jobs_per_gpu, jobs=jobs)
        lines = run_specs(specs, prepared, parallel, progress_display(False))
    for line in lines:
        click.echo(line)
    if seeds > 1 and not dry_run:
        for at in range(len(numbers)):
            click.echo(spread_of(specs[at :: len(numbers)], prepared))


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


@main.command()
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


@main.command()
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


@main.command()
@click.argument("words", nargs=-1)
@runs_option
@json_option
def runs(words: tuple[str, ...], runs: Path | None, as_json: bool) -> None:
    """List runs: how far each is, how good, and whether it runs.

    WORDS choose: those whose folders, shard or state hold all of them.

    Example: spectral runs cifar10 failed
    """
    from trainer.data.selection import runs_root
    from trainer.reports.runs import list_runs, table

    root = runs_root(runs)
    found = list_runs(root, words)
    click.echo(
        json.dumps([run.row() for run in found], indent=1) if as_json else table(found, root)
    )


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
    from pipeline.errors import some
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
            f"{len(errors)} of {len(paths)} images were not classified:\n  {some(errors)}"
        )


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


def _bad(directory: Path) -> list[dict[str, str]]:
    """`id` and `reason` of each image that could not be used."""
    from pipeline.stage.samples import quarantined

    if directory.is_file():
        raise ConfigError(f"{directory} is a file: name its prepared directory")
    return [{"id": sample, "reason": reason} for sample, reason in quarantined(directory)]


def _echo_bad(bad: list[dict[str, str]]) -> None:
    click.echo(f"{len(bad)} images could not be used" + ":" * bool(bad))
    for row in bad:
        click.echo(f"  {printable(row['id'])}: {printable(row['reason'])}")


if __name__ == "__main__":
    main()
