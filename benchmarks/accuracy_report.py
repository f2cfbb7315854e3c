"""Shows what the accuracy study has found: a table, and accuracy against cost as a picture."""

import base64
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SAMPLES = 2000  # of the bootstrap
BASELINE = "whole"
Lines = list[dict[str, Any]]


def grouped(lines: Lines) -> dict[tuple[str, float], Lines]:
    """The seeds of each cell and cost, dearest cost last."""
    found: dict[tuple[str, float], Lines] = defaultdict(list)
    for line in sorted(lines, key=lambda line: line["cost"]):
        found[line["cell"], line["cost"]].append(line)
    return found


def hits(lines: Lines) -> NDArray[np.float64]:
    """(seeds, images): 1 where the fused classifier was right."""
    packed = [np.frombuffer(base64.b64decode(line["hits"]), np.uint8) for line in lines]
    return np.stack([np.unpackbits(each) for each in packed]).astype(float)


def interval(
    found: NDArray[np.float64], against: NDArray[np.float64] | None
) -> tuple[float, float]:
    """95 % of the mean accuracy, or of its difference to `against` on the same images; drawn over
    images, and over seeds.
    """
    rng = np.random.default_rng(0)
    means = []
    for _ in range(_SAMPLES):
        images = rng.integers(0, found.shape[1], found.shape[1])
        counts = np.bincount(images, minlength=found.shape[1])

        def mean(of: NDArray[np.float64], counts: NDArray[np.int64] = counts) -> float:
            seeds = rng.integers(0, len(of), len(of))
            return float((of[seeds].mean(0) @ counts) / counts.sum())

        means.append(mean(found) - (0.0 if against is None else mean(against)))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def table(lines: Lines) -> str:
    """Markdown: a row for each cell and cost, with the difference to the whole image's network of
    the same cost.
    """
    found = grouped(lines)
    rows = [
        "| cost | cell | networks | seeds | top-1 % | ± seeds | against whole, points (95 %) "
        "| average | geometric | published | NLL | PFLOP | inference MFLOP |",
        "|---" * 13 + "|",
    ]
    order = sorted(found, key=lambda key: (key[1], -_mean(found[key], "learned")))
    for cell, cost in order:
        group = found[cell, cost]
        best = [line["learned"]["top1"] for line in group]
        whole = found.get((BASELINE, cost))
        if cell == BASELINE or not whole:
            against = "-"
        else:
            low, high = interval(hits(group), hits(whole))
            change = 100 * (np.mean(best) - _mean(whole, "learned"))
            against = f"{change:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        others = " | ".join(
            f"{100 * _mean(group, way):.2f}" if way in group[0] else "-"
            for way in ("average", "geometric", "published")
        )
        nll = np.mean([line["learned"]["nll"] for line in group])
        rows.append(
            f"| {cost:g} | {cell} | {group[0]['networks']} | {len(group)} "
            f"| {100 * np.mean(best):.2f} | {100 * np.std(best):.2f} | {against} | {others} "
            f"| {nll:.3f} | {group[0]['train_pflop']:.3f} | {group[0]['inference_mflop']:.0f} |"
        )
    return "\n".join(rows)


def plot(lines: Lines, png: Path) -> None:
    """Top-1 error over the cost of training, a line for each cell that has several costs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_cell: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for (cell, _), group in grouped(lines).items():
        top = [100 * line["learned"]["top1"] for line in group]
        by_cell[cell].append((group[0]["train_pflop"], float(np.mean(top)), float(np.std(top))))
    figure, axes = plt.subplots(figsize=(9, 6))
    for cell, points in by_cell.items():
        costs, means, spread = zip(*sorted(points), strict=True)
        several = len(points) > 1
        axes.errorbar(costs, means, spread, marker="o" if several else "x", capsize=3, label=cell,
                      linestyle="-" if several else "none")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("training, PFLOP (all networks of the cell)")
    axes.set_ylabel("top-1 on val, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, loc="lower right")
    figure.tight_layout()
    figure.savefig(png, dpi=130)


def _mean(lines: Lines, way: str) -> float:
    return float(np.mean([line[way]["top1"] for line in lines]))
