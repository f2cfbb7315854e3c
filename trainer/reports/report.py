"""The result of a run or an ensemble in, text for people out."""

import statistics
from typing import Any


def figures(result: dict[str, Any]) -> str:
    """What came out of one run, in one line."""
    found = [
        f"{split} {result[split]['top1']:.2%}"
        for split in ("calib", "val", "test")
        if split in result
    ]
    return ", ".join([f"{result['epochs']:g} epochs in {result['train_seconds']:.0f} s", *found])


def spread(results: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation of the accuracy over runs with several seeds, and the median."""
    parts = []
    for split in ("val", "test"):
        if all(split in result for result in results):
            found = [100 * result[split]["top1"] for result in results]
            parts.append(
                f"{split} {statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} %, median "
                f"{statistics.median(found):.2f} %"
            )
    return f"{len(results)} seeds: " + ("; ".join(parts) or "neither val nor test to measure on")


def of_total(value: float | None, total: float | None) -> str:
    """`1.5/40`; `–` where the value is not known."""
    if value is None:
        return "–"
    number, whole = (f"{part or 0:.1f}".removesuffix(".0") for part in (value, total))
    return f"{number}/{whole}" if total else number


def duration(seconds: float | None) -> str:
    """`2 d 4 h`, `3 h 20 min`, `4 min`, `12 s`; `–` where it is not known."""
    if seconds is None:
        return "–"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 1:
        return f"{int(days)} d {int(hours % 24)} h"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def table(result: dict[str, Any]) -> str:
    """What `spectral ensemble` found: one line a network, then one a way to fuse; then what else
    there is to say.
    """
    split = result["measured_on"]
    measured = "not measured: there is no split for it"
    if split:
        samples = result["networks"][0][split]["samples"]
        measured = f"on {split} ({samples:,} images), ± half of the 95 % interval"
    lines = [f"{result['data']}, {result['recipe']}, {measured}", _HEAD]
    learned = result["fused"].get("learned", {}).get("weights", [])
    for k, row in enumerate(result["networks"]):
        weight = f"{learned[k]:>9.3f}" if learned else ""
        lines.append(_line(f"shard {row['shard']}", row.get(split)) + weight)
    lines += [_line(method, row.get(split)) for method, row in result["fused"].items()]
    lines += _remarks(result, split)
    return "\n".join(lines)


_HEAD = f"{'':<14}{'top-1':>17}{'top-5':>9}{'NLL':>9}{'ECE':>8}   weight in learned"


def _line(name: str, row: dict[str, Any] | None) -> str:
    if row is None:
        return f"{name:<14}{'–':>17}{'–':>9}{'–':>9}{'–':>8}"
    low, high = row["top1_interval"]
    top1 = f"{row['top1']:.2%} ± {50 * (high - low):.2f}"
    return f"{name:<14}{top1:>17}{row['top5']:>9.2%}{row['nll']:>9.4f}{row['ece']:>8.4f}"


def _remarks(result: dict[str, Any], split: str | None) -> list[str]:
    """Where a fitted fusion comes from, how accuracy grows with networks, cost, comparison."""
    lines = [f"predictions are made with {result['method']}"]
    if result["fitted_on"]:
        count = result["fitted_samples"]
        lines[0] += f"; weights fitted on {count:,} samples of {result['fitted_on']}"
    for method, row in result["fused"].items():
        if "leaks" in row:
            lines.append(f"{method} leaks: it was {row['leaks']}, which it is reported on")
    for name, curve in result.get("curve", {}).get(split, {}).items():
        points = zip(curve["networks"], curve["top1"], strict=True)
        which = "in the best order on " + str(result["fitted_on"]) if name == "best" else "in order"
        lines.append(f"networks {which}: " + ", ".join(f"{m}: {100 * a:.2f}" for m, a in points))
    if split and len(result["networks"]) > 1:
        mean = result["disagreement"][split]["mean"]
        lines.append(f"two networks give different classes to {mean:.1%} of the images")
    cost = result["cost"]
    lines.append(
        f"training: {cost['pflop']:.4g} PFLOP, {cost['images']:,} images, {cost['hours']:.3g} h; "
        f"an image: {cost['mflop']:,.1f} MFLOP, {cost['parameters'] / 1e6:,.2f} M parameters"
    )
    for row in result.get("against", []):
        low, high = (100 * bound for bound in row["interval"])
        lines.append(
            f"against {row['other']}: {100 * row['difference']:+.2f} points "
            f"({low:+.2f} to {high:+.2f}), McNemar p = {row['mcnemar_p']:.2g}"
        )
    if result["missing"]:
        missing = ", ".join(map(str, result["missing"]))
        lines.append(f"planes that no network of this fusion sees: {missing}")
    return lines


def evaluation_table(result: dict[str, Any]) -> str:
    """What `spectral evaluate` found."""
    samples = result["fused"]["samples"]
    lines = [
        f"{result['data']}, {result['split']} ({samples:,} images of {result['classes']:,} "
        "classes), ± half of the 95 % interval",
        _HEAD.removesuffix("   weight in learned"),
    ]
    networks = result["networks"] if len(result["networks"]) > 1 else []
    lines += [_line(f"shard {row['shard']}", row) for row in networks]
    return "\n".join([*lines, _line("fused", result["fused"])])
