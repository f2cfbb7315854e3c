"""The model card of a folder for the Hugging Face Hub: what it is, how good, how to load it."""

from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pipeline.catalogue import catalogue
from pipeline.format.manifest import Manifest

_METRICS = (("top1", "accuracy", "Top-1"), ("top5", "top-5-accuracy", "Top-5"),
            ("nll", "nll", "NLL (nats)"), ("ece", "ece", "ECE"))  # fmt: skip


def card(config: dict[str, Any], data: Manifest, licence: str) -> str:
    """README.md. config: the content of config.json; licence: of the weights, as the Hub calls
    it.
    """
    front = ModelCardData(
        license=licence,
        library_name="spectral-shards",
        pipeline_tag="image-classification",
        tags=["image-classification", "spectral"],
        datasets=data.preparation.dataset,
        model_name=_title(config),
        eval_results=_results(config) or None,
    )
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n{_text(config, data)}"))


def _title(config: dict[str, Any]) -> str:
    return f"{config['dataset']} {config['folder']}, {_networks(config)}"


def _networks(config: dict[str, Any]) -> str:
    models = sorted({row["recipe"]["model"] for row in config["networks"]})
    return f"{len(config['networks'])} × {', '.join(models)}"


def _results(config: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=config["dataset"],
            dataset_name=config["dataset"],
            dataset_split=config["split"],
            metric_type=kind,
            metric_name=name,
            metric_value=config["figures"][key],
            metric_args={"interval_95": config["figures"][f"{key}_interval"]}
            if f"{key}_interval" in config["figures"]
            else None,
        )
        for key, kind, name in _METRICS
        if key in (config["figures"] or {})
    ]


def _text(config: dict[str, Any], data: Manifest) -> str:
    prep, spec = data.preparation, catalogue().get(config["dataset"])
    whole = "whole images" if prep.splits == 1 else f"{prep.splits} spectral planes of each image"
    planes = ["+".join(map(str, row["planes"])) for row in config["networks"]]
    lines = [
        f"# {_title(config)}",
        "",
        f"An image classifier of {len(data.classes):,} classes, trained with `spectral` "
        f"{config['spectral']} on {whole} of {prep.size} px; the answers of its networks are "
        f"fused{' (' + config['method'] + ')' if config['method'] else ''}.",
        "",
        f"- Data set: {spec.title if spec else config['dataset']}"
        + (f"; its terms: {spec.terms}" if spec else ""),
        f"- Planes that the networks see: {', '.join(planes)}",
        "",
        *_table(config),
        "## How to load it",
        "",
        "```python",
        "from trainer import FusedClassifier  # pip install spectral-shards",
        "",
        "# after `hf download REPO --local-dir FOLDER`",
        'classifier = FusedClassifier.load("FOLDER")',
        'print(classifier.classify(["photo.jpg"])[0])',
        "```",
        "",
        "or `spectral predict --runs FOLDER photo.jpg`. `config.json` has the networks, their",
        "recipes, weights and digests; `manifest.json` the preparation, classes and statistics.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _table(config: dict[str, Any]) -> list[str]:
    figures = config["figures"]
    if not figures:
        return ["It was not measured on data that nothing was chosen by.", ""]
    rows = [f"On {config['split']}, {figures['samples']:,} images:", "",
            "| | | 95 % interval |", "|---|---|---|"]  # fmt: skip
    for key, _, name in _METRICS:
        if key in figures:
            form = "{:.2%}" if key.startswith("top") else "{:.4f}"
            bounds = figures.get(f"{key}_interval")
            interval = " to ".join(form.format(bound) for bound in bounds) if bounds else "–"
            rows.append(f"| {name} | {form.format(figures[key])} | {interval} |")
    return [*rows, ""]
