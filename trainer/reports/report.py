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
    """One line a network, then one a way to fuse; figures on val."""
    samples = result["shards"][0].get("samples")
    measured = "not measured: there is no split for it"
    if samples:
        measured = f"on {result['measured_on']} ({samples:,} images)"
    lines = [f"{result['data']}, {result['recipe']}, {measured}"]
    lines.append(f"{'':<14}{'top-1':>9}{'top-5':>9}{'NLL':>9}  weight in learned")
    learned = result["fused"].get("learned", {}).get("weights", [None] * len(result["shards"]))
    for row, weight in zip(result["shards"], learned, strict=True):
        text = "" if weight is None else f"  {weight:.3f}"
        lines.append(_line(f"shard {row['shard']}", row) + text)
    lines += [_line(method, row) for method, row in result["fused"].items()]
    if result["missing"]:
        missing = ", ".join(map(str, result["missing"]))
        lines.append(f"not trained, so not in the fusion: shards {missing}")
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any]) -> str:
    if "top1" not in row:
        return f"{name:<14}{'–':>9}{'–':>9}{'–':>9}"
    return f"{name:<14}{row['top1']:>9.2%}{row['top5']:>9.2%}{row['nll']:>9.4f}"
