"""Logs of runs in; one picture of loss, learning rate and accuracy over steps out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from trainer.record.runlog import NAME, Row, valid_rows

Points = tuple[NDArray[np.float64], NDArray[np.float64]]
SMOOTHED_OVER = 50  # the line shows means over this part of all points
FAINT_UP_TO = 8  # runs: with more, the raw losses would hide the lines
STYLES = {"calib": ("-", "o"), "val": ("--", "D"), "test": (":", "s")}
MARKED_UP_TO = 40  # points of a line; more would hide it
LONGEST = 44  # letters of a name in the legend
A_COLUMN = 20  # runs in a column of the legend
NAMED_UP_TO = 40  # runs; a longer list of names would fill the picture


def draw(paths: Sequence[Path], png: Path) -> int:
    """Write the picture; how many runs are in it. ConfigError when there is nothing to draw."""
    runs = {run: rows for run in find_runs(paths) if (rows := valid_rows(run / NAME))}
    if not runs:
        raise ConfigError(
            f"nothing to draw in {', '.join(map(str, paths))}: no log.jsonl with any rows in it; "
            "name a run's directory or a folder above several"
        )
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    named = -(-len(runs) // A_COLUMN) if 1 < len(runs) <= NAMED_UP_TO else 0
    figure, axes = plt.subplots(
        3,
        1,
        sharex=True,
        figsize=(7 + 3 * named, 9),
        height_ratios=[3, 1, 2.2],
        layout="constrained",
    )
    colours = _colours(len(runs))
    for rows, colour, name in zip(runs.values(), colours, names(list(runs)), strict=True):
        _draw_run(axes, rows, colour, name, faint=len(runs) <= FAINT_UP_TO)
    _dress(figure, axes, list(runs), {row.get("split") for rows in runs.values() for row in rows})
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=120)
    plt.close(figure)
    return len(runs)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Directories with a log, each once: those named, and those below."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path} is no directory: name a run's, or a folder above several")
        found |= dict.fromkeys(sorted(log.parent for log in path.rglob(NAME)))
    return list(found)


def names(runs: list[Path]) -> list[str]:
    """What tells the runs apart: the part of their paths that differs."""
    common = Path(os.path.commonpath([run.absolute().parent for run in runs]))
    found = [str(run.absolute().relative_to(common)).replace("shard_", "shard ") for run in runs]
    return [
        n if len(n) <= LONGEST else f"{n[: LONGEST // 2]}…{n[-LONGEST // 2 + 1 :]}" for n in found
    ]


def points(rows: list[Row], kind: str, key: str, split: str | None = None) -> Points:
    """(steps, values) of the rows that have a number under `key`, by step."""
    found = {
        float(row["step"]): float(row[key])
        for row in rows
        if row["kind"] == kind
        and row.get("split") == split
        and isinstance(row.get(key), int | float)
    }
    steps = sorted(found)
    return np.array(steps), np.array([found[step] for step in steps])


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running means, over fewer points towards both ends; what is no number is left out."""
    count = len(values)
    at, full = np.arange(count), len(values) // SMOOTHED_OVER
    # even on both sides, lest the line lag behind a steep start; but never of a few points only
    reach = np.clip(np.minimum(at, count - 1 - at), full // 4, full)
    known = np.isfinite(values)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(known, values, 0.0), known)
    )
    first, end = np.maximum(at - reach, 0), np.minimum(at + reach + 1, count)
    means: NDArray[np.float64] = np.full(count, np.nan)
    inside = counts[end] - counts[first]
    np.divide(sums[end] - sums[first], inside, out=means, where=inside > 0)
    return means


def _draw_run(axes: Any, rows: list[Row], colour: Any, name: str, faint: bool) -> None:
    loss, rate, accuracy = axes
    steps, losses = points(rows, "train", "loss")
    marker = "." if len(steps) == 1 else None
    if faint and len(steps) > SMOOTHED_OVER:
        loss.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
    loss.plot(steps, smoothed(losses), color=colour, label=name, marker=marker)
    rate.plot(*points(rows, "train", "lr"), color=colour, marker=marker)
    for split, (line, mark) in STYLES.items():
        found = points(rows, "eval", "top1", split)
        if not len(found[0]):  # measured once, at the end
            found = points(rows, "final", "top1", split)
        shown = mark if len(found[0]) <= MARKED_UP_TO else None
        accuracy.plot(*found, line, color=colour, marker=shown, markersize=4.5)


def _dress(figure: Any, axes: Any, runs: list[Path], splits: set[str | None]) -> None:
    loss, rate, accuracy = axes
    loss.set(ylabel="loss (mean)")
    rate.set(ylabel="learning rate", ylim=(0, None))
    accuracy.set(ylabel="top-1 accuracy", xlabel="step", xlim=(0, None))
    accuracy.yaxis.set_major_formatter("{x:.0%}")
    accuracy.xaxis.set_major_formatter("{x:,.0f}")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for split, (line, mark) in STYLES.items():
        if split in splits:
            accuracy.plot([], [], line, marker=mark, markersize=4.5, color="0.3", label=split)
    if splits & set(STYLES):
        accuracy.legend()
    if 1 < len(runs) <= NAMED_UP_TO:
        columns = -(-len(runs) // A_COLUMN)
        figure.legend(*loss.get_legend_handles_labels(), loc="outside right upper", fontsize=8,
                      ncols=columns)  # fmt: skip
        title = os.path.commonpath([str(run.absolute().parent) for run in runs])
    elif len(runs) > 1:
        title = os.path.commonpath([str(run.absolute().parent) for run in runs])
        title += f", {len(runs)} runs"
    else:
        title = str(runs[0].absolute())
    figure.align_ylabels(axes)
    parts = Path(title).parts
    loss.set_title("/".join(parts[-4:]).replace("//", "/"), fontsize=10)


def _colours(count: int) -> list[Any]:
    import matplotlib

    if count <= 10:
        return [f"C{index}" for index in range(count)]
    return list(matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count)))
