"""Which networks answer for a path, and how their answers are pooled."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DamagedError
from trainer.fusion.ensemble import NAME
from trainer.fusion.figures import wilson
from trainer.fusion.members import Member
from trainer.fusion.pooling import Pooling
from trainer.record.rundir import folder


@dataclass(frozen=True)
class Selected:
    """Finished runs of weight above 0. flip: their networks see mirror images too, where exact.
    method: how they were fused, None for a single run. split, figures: what was measured, if
    anything was.
    """

    members: list[Member]
    pooling: Pooling
    flip: bool
    method: str | None
    split: str | None
    figures: dict[str, Any] | None


def selected(path: Path, method: str | None = None) -> Selected:
    """Of a group of runs that `spectral ensemble` has fused, with its weights or those of another
    method; or of a single run. ConfigError, DamagedError.
    """
    if (path / NAME).exists():
        return _of_group(path, method)
    if (path / "result.json").exists():
        return _of_run(path)
    raise ConfigError(
        f"{path} is no classifier: name a finished run, a group of runs after `spectral ensemble`, "
        "or a folder that `spectral export` wrote"
    )


def _of_group(group: Path, method: str | None) -> Selected:
    with _reading(group) as content:
        chosen = str(method or content["method"])
        if chosen not in content["fused"]:
            there = ", ".join(content["fused"])
            raise ConfigError(f"{group / NAME} has no method {chosen}: there are {there}")
        row, flip, split = content["fused"][chosen], bool(content["flip"]), content["measured_on"]
        pooling, networks = Pooling.read(row), content["networks"]
        if len(pooling.weights) != len(networks):
            raise ValueError(f"{len(pooling.weights)} weights of {len(networks)} networks")
        rows = zip(networks, pooling.weights, strict=True)
        used = [(tuple(one["planes"]), one["digest"], w) for one, w in rows if w > 0]
        figures = row.get(split)
    members = []
    for planes, digest, _ in used:
        members.append(Member.of(group / folder(planes)))
        members[-1].check_unchanged(digest)
    own = Pooling(tuple(weight for *_, weight in used), pooling.temperature, pooling.over)
    return Selected(members, own, flip, chosen, split, figures)


def _of_run(directory: Path) -> Selected:
    member = Member.of(directory)
    result = member.run.result or {}
    split = next((name for name in ("test", "val") if name in result), None)
    figures = None
    if split is not None:
        figures = dict(result[split])
        for name in ("top1", "top5"):
            figures[f"{name}_interval"] = wilson(figures[name], figures["samples"])
    return Selected([member], Pooling((1.0,)), False, None, split, figures)


def default_method(group: Path) -> str:
    """What predictions of a fused group are made with."""
    with _reading(group) as content:
        return str(content["method"])


@contextmanager
def _reading(group: Path) -> Iterator[dict[str, Any]]:
    """The content of ensemble.json, and its errors."""
    path = group / NAME
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: run `spectral ensemble` again") from error
