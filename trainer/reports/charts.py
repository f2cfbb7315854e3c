"""The drawings of a report, as SVG that takes the colour of the page's text."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trainer.record.runlog import Row
from trainer.reports.plot import points, smoothed

_INK = "#010203"  # stands for the colour of the text around the drawing
_STYLE: Any = {
    **{f"{what}.color": _INK for what in ("text", "xtick", "ytick")},
    **{f"axes.{what}": _INK for what in ("edgecolor", "labelcolor", "titlecolor")},
    "grid.color": "#888888",
    "grid.alpha": 0.3,
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def _figure(salt: str, found: list[str], **options: Any) -> Iterator[Any]:
    """Axes to draw on; the SVG is added to `found`. Ids within it are made of `salt`, so that two
    drawings of a page do not share them.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure, axes = plt.subplots(layout="constrained", **options)
        yield axes
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
        plt.close(figure)
    svg = text.getvalue()
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{salt}-", svg[svg.index("<svg") :])
    found.append(svg.replace(_INK, "currentColor"))


def training_curves(runs: dict[str, list[Row]]) -> str:
    """Loss, and accuracy on the split that chooses, over steps; a line a run."""
    found: list[str] = []
    with _figure("training", found, nrows=1, ncols=2, figsize=(9, 3)) as (loss, accuracy):
        for name, rows in runs.items():
            steps, losses = points(rows, "train", "loss")
            loss.plot(steps, smoothed(losses), linewidth=1, label=f"shard {name}")
            splits = {row.get("split") for row in rows if row["kind"] == "eval"}
            for split in sorted(split for split in splits if split):
                evaluated = points(rows, "eval", "top1", split)
                accuracy.plot(*evaluated, ".-", linewidth=1, markersize=3)
        loss.set(xlabel="step", ylabel="training loss")
        accuracy.set(xlabel="step", ylabel="top-1 where the best is chosen")
        accuracy.yaxis.set_major_formatter("{x:.0%}")
        for axis in (loss, accuracy):
            axis.grid()
        if len(runs) <= 8:
            loss.legend(fontsize=8, labelcolor=_INK, frameon=False)
    return found[0]


def anytime(curve: dict[str, Any]) -> str:
    """Accuracy against the number of networks."""
    found: list[str] = []
    labels = {"best": "in the best order on calib", "shards": "in the order of the shards"}
    with _figure("anytime", found, figsize=(4.4, 3)) as axis:
        for name, row in curve.items():
            axis.plot(row["networks"], row["top1"], "o-", markersize=4, label=labels[name])
        axis.set(xlabel="networks", ylabel="top-1")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.set_major_formatter("{x:.1%}")
        axis.grid()
        axis.legend(fontsize=8, labelcolor=_INK, frameon=False)
    return found[0]


def disagreement(pairs: Sequence[Sequence[float]], shards: Sequence[str]) -> str:
    """The share of images to which two networks give different classes."""
    found: list[str] = []
    with _figure("disagreement", found, figsize=(4.4, 3.4)) as axis:
        image = axis.imshow(pairs, cmap="viridis", vmin=0)
        bar = axis.figure.colorbar(image, ax=axis, format="{x:.0%}")
        bar.outline.set_visible(False)
        if len(shards) <= 16:
            axis.set_xticks(range(len(shards)), shards, rotation=45 if len(shards) > 6 else 0)
            axis.set_yticks(range(len(shards)), shards)
        axis.set(xlabel="shard", ylabel="shard")
    return found[0]


def reliability(bins: Sequence[dict[str, float]]) -> str:
    """Accuracy against confidence; the area of a point is the share of images in its bin."""
    found: list[str] = []
    with _figure("reliability", found, figsize=(3.6, 3)) as axis:
        axis.plot([0, 1], [0, 1], "--", color="#888888", linewidth=1)
        sizes = [max(4.0, 400 * row["share"]) for row in bins]
        x, y = ([row[key] for row in bins] for key in ("confidence", "accuracy"))
        axis.scatter(x, y, sizes, alpha=0.8)
        axis.plot(x, y, linewidth=1)
        axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axis.grid()
    return found[0]


def planes(energy: Sequence[float], stored: Sequence[float]) -> str:
    """Energy and bytes of each plane."""
    found: list[str] = []
    with _figure("planes", found, nrows=1, ncols=2, figsize=(9, 2.4)) as (first, second):
        first.bar(range(len(energy)), energy)
        first.set(yscale="log", xlabel="plane k", ylabel="share of the energy")
        second.bar(range(len(stored)), stored)
        second.set(xlabel="plane k", ylabel="bytes a sample")
        for axis in (first, second):
            axis.grid(axis="y")
            axis.xaxis.get_major_locator().set_params(integer=True)
    return found[0]
