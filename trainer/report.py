"""The result of an ensemble in, a table for people out."""

from typing import Any


def table(result: dict[str, Any]) -> str:
    """One line a network, then one a way to fuse; figures on val."""
    samples = result["shards"][0].get("samples")
    measured = f"on val ({samples:,} images)" if samples else "not measured: there is no val"
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
