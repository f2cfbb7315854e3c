"""Two descriptions of a run in, how they differ out; and whether a source has been touched."""

from pathlib import Path
from typing import Any

from pipeline.sources.index import stamp


def difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """The keys that differ, at any depth, with both values; empty where none does."""
    return "; ".join(_differences("", then, now))


def _differences(where: str, then: Any, now: Any) -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*then, *(key for key in now if key not in then)]
        return [text for key in keys for text in _differences(key, then.get(key), now.get(key))]
    return [] if then == now else [f"{where} was {then}, now it is {now}"]


def changed_places(root: Path, origin: dict[str, list[int]]) -> list[str]:
    """Files and folders whose size or date is no longer the recorded one."""
    return [name for name, recorded in origin.items() if _stamp(root / name) != recorded]


def _stamp(path: Path) -> list[int] | None:
    try:
        return stamp(path)
    except OSError:
        return None
