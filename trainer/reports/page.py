"""A report of one fused classifier as a single HTML file: no script, nothing loaded from elsewhere.

Names of classes and files are foreign text: the template escapes all that it is given, but for
the drawings, which are our own.
"""

import base64
import json
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, DamagedError
from pipeline.files import write_whole
from pipeline.format import manifest
from pipeline.format.manifest import Manifest
from trainer.recipes.plan import NAME as PLAN
from trainer.record.rundir import RunDir, folder
from trainer.record.runlog import NAME as LOG
from trainer.record.runlog import valid_rows
from trainer.reports import charts
from trainer.reports.report import duration

CONFUSIONS, PICTURES = 12, 3  # pairs of classes, and images of each
# (numbers of stored samples of a split) → an encoded WebP of each, or None
Pictures = Callable[[str, list[int]], list[bytes]]


def write_report(
    group: Path, target: Path, pictures: Pictures | None = None, sheet: bytes | None = None
) -> int:
    """Write the page of a group that `spectral ensemble` has measured; its size in bytes.

    pictures: gives images of samples; sheet: a contact sheet of planes, WebP.
    """
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    result = _result(group)
    data = manifest.load(_run(group, result["networks"][0]).path)
    where = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=where, autoescape=select_autoescape(), trim_blocks=True)
    content = _content(group, result, data, pictures)
    page = pages.get_template("page.html").render(sheet=sheet and _embedded(sheet), **content)
    write_whole(target, page.encode())
    return len(page.encode())


def _result(group: Path) -> dict[str, Any]:
    path = group / "ensemble.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except OSError as error:
        raise ConfigError(f"{group} was not measured: run `spectral ensemble` first") from error
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: run `spectral ensemble` again") from error


def _run(group: Path, row: dict[str, Any]) -> RunDir:
    return RunDir(group / folder(tuple(row["planes"])))


def _content(
    group: Path, result: dict[str, Any], data: Manifest, pictures: Pictures | None
) -> dict[str, Any]:
    split, method = result["measured_on"], result["method"]
    figures = result["fused"][method].get(split) if split else None
    prep = data.preparation
    counts = ", ".join(f"{row['written']:,} {name}" for name, row in data.counts.items()
                       if row["written"])  # fmt: skip
    first = _run(group, result["networks"][0]).path
    logs = {row["shard"]: valid_rows(_run(group, row).path / LOG) for row in result["networks"]}
    energy = np.array([np.square(plane.std).sum() for plane in data.planes])
    plan = group / PLAN
    return {
        "title": f"{result['data']}, {result['recipe']}",
        "images": f"{counts} images, {len(data.classes):,} classes",
        "what": f"{prep.size} px, {prep.splits} planes ({prep.transform}, {prep.codec})",
        "headline": figures and _headline(figures),
        "split": split,
        "method": method,
        "rows": _rows(result, split, method),
        "fitted": _fitted(result),
        "remarks": [_against(row) for row in result.get("against", [])],
        "charts": _charts(result, split),
        "confusions": _confusions(group, split, method, data, pictures) if figures else [],
        "costs": _costs(result),
        "planes": charts.planes((energy / energy.sum()).tolist(),
                                [plane.bytes_per_sample for plane in data.planes]),
        "curves": charts.training_curves(logs) if any(logs.values()) else None,
        "commands": _commands(data, result),
        "plan": plan.read_text(encoding="utf-8") if plan.exists() else None,
        "versions": (first / "versions.json").read_text(encoding="utf-8"),
        "recipe": (first / "recipe.toml").read_text(encoding="utf-8"),
    }  # fmt: skip


def _headline(figures: dict[str, Any]) -> dict[str, str]:
    low, high = figures["top1_interval"]
    return {"top1": f"{figures['top1']:.2%}", "low": f"{100 * low:.2f}",
            "high": f"{100 * high:.2f} %", "samples": f"{figures['samples']:,}"}  # fmt: skip


def _rows(result: dict[str, Any], split: str | None, method: str) -> list[dict[str, Any]]:
    learned = result["fused"].get("learned", {}).get("weights")
    rows = []
    for k, network in enumerate(result["networks"]):
        weight = f"{learned[k]:.3f}" if learned else ""
        rows.append(_row(f"shard {network['shard']}", network.get(split), weight))
    for name, fused in result["fused"].items():
        leaks = ", leaks" * ("leaks" in fused)
        rows.append(
            _row(f"fused: {name}{leaks}", fused.get(split), "") | {"chosen": name == method}
        )
    return rows


def _row(name: str, figures: dict[str, Any] | None, weight: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "weight": weight, "chosen": False}
    if figures is None:
        return row | dict.fromkeys(("top1", "interval", "top5", "nll", "ece"), "–")
    low, high = figures["top1_interval"]
    return row | {
        "top1": f"{figures['top1']:.2%}",
        "interval": f"{100 * low:.2f} to {100 * high:.2f}",
        "top5": f"{figures['top5']:.2%}",
        "nll": f"{figures['nll']:.4f}",
        "ece": f"{figures['ece']:.4f}",
    }


def _fitted(result: dict[str, Any]) -> str:
    text = "Weights are equal: there was no split to fit them on."
    if result["fitted_on"]:
        text = (
            f"Weights and temperatures were fitted on {result['fitted_samples']:,} samples of "
            f"{result['fitted_on']}, which no figure is of."
        )
    if result["missing"]:
        text += f" No network sees planes {', '.join(map(str, result['missing']))}."
    return text


def _against(row: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in row["interval"])
    return (
        f"Against {row['other']}: {100 * row['difference']:+.2f} points ({low:+.2f} to "
        f"{high:+.2f}) "
        f"on the same {row['samples']:,} images, McNemar's p = {row['mcnemar_p']:.2g}."
    )


def _charts(result: dict[str, Any], split: str | None) -> list[dict[str, str]]:
    if split is None:
        return []
    found = [{
        "svg": charts.reliability(result["reliability"][split]),
        "caption": f"Reliability of the fused classifier on {split}; on the dashed line its "
        "confidence is its accuracy.",
    }]  # fmt: skip
    if curve := result["curve"][split]:
        svg = charts.anytime(curve)
        caption = "Accuracy against the number of networks, weights learned for each number."
        found.insert(0, {"svg": svg, "caption": caption})
        shards = [row["shard"] for row in result["networks"]]
        svg = charts.disagreement(result["disagreement"][split]["pairs"], shards)
        caption = "Share of images to which two networks give different classes."
        found.append({"svg": svg, "caption": caption})
    return found


def _confusions(
    group: Path, split: str, method: str, data: Manifest, pictures: Pictures | None
) -> list[dict[str, Any]]:
    """The pairs of classes that are taken for each other most often, with images."""
    table = pq.read_table(group / "outcomes.parquet", columns=["id", "label", f"{method}.class"])
    ids, labels, predicted = (np.asarray(column) for column in table.columns)
    wrong = np.flatnonzero(labels != predicted)
    pairs = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    names = data.class_names or data.classes
    found = []
    for (truth, guess), count in sorted(pairs.items(), key=lambda pair: -pair[1])[:CONFUSIONS]:
        places = wrong[(labels[wrong] == truth) & (predicted[wrong] == guess)][:PICTURES].tolist()
        images = [] if pictures is None else pictures(split, places)
        found.append({
            "truth": names[truth], "predicted": names[guess], "count": count,
            "images": [{"data": _embedded(image), "id": ids[place]}
                       for image, place in zip(images, places, strict=False)],
        })  # fmt: skip
    return found


def _embedded(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def _costs(result: dict[str, Any]) -> list[dict[str, str]]:
    rows = [(f"shard {row['shard']}", row["cost"]) for row in result["networks"]]
    return [
        {
            "name": name,
            "parameters": f"{cost['parameters']:,}",
            "mflop": f"{cost['mflop']:,.1f}",
            "images": f"{cost['images']:,}",
            "pflop": f"{cost['pflop']:.4g}",
            "hours": duration(3600 * cost["hours"]),
        }
        for name, cost in [*rows, ("all", result["cost"])]
    ]


def _commands(data: Manifest, result: dict[str, Any]) -> list[str]:
    prep = data.preparation
    options = f"--splits {prep.splits} --size {prep.size} --transform {prep.transform} "
    options += f"--codec {prep.codec} --calib {prep.calib:g}"
    name = shlex.quote(prep.dataset)
    shards = ",".join(row["shard"] for row in result["networks"])
    which = f"--dataset {name} --splits {prep.splits} --transform {prep.transform}"
    return [
        f"spectral prepare {name} --source {shlex.quote(data.source)} {options}",
        f"spectral train {which} --shard {shards} --recipe recipe.toml   # the recipe is below",
        f"spectral ensemble {which} --recipe {shlex.quote(result['recipe'])}",
    ]
