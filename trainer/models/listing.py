"""Lists networks: ours with their size, and timm's."""

from typing import Any, NamedTuple

from pipeline.errors import ConfigError
from trainer import models
from trainer.console import table
from trainer.models import others
from trainer.models.meta import on_meta

PLANE, CLASSES = (3, 56, 56), 1000  # plane of a 16-shard ImageNet at 224 px
_COLUMNS = ("network", "parameters", "model_args")


class Ours(NamedTuple):
    """A network of ours, as one of its family."""

    name: str
    parameters: int
    arguments: list[str]


def find(words: tuple[str, ...]) -> tuple[list[Ours], list[str]]:
    """Ours and timm's whose names hold all words; ConfigError if there are none."""
    wanted = [word.lower() for word in words]

    def fits(name: str) -> bool:
        return all(word in name.lower() for word in wanted)

    ours = [_ours(name) for name in models.examples() if fits(name)]
    theirs = [name for name in others.timm_names() if fits(name)]
    if not ours and not theirs:
        raise ConfigError(f"no network with {' '.join(words)}; `spectral networks` lists ours")
    return ours, theirs


def shown(words: tuple[str, ...]) -> str:
    """For people; timm's are counted, and with words listed too."""
    ours, theirs = find(words)
    channels, side, _ = PLANE
    head = f"for planes of {channels}×{side}×{side} and {CLASSES:,} classes:"
    rows = [(each.name, f"{each.parameters:,}", ", ".join(each.arguments)) for each in ours]
    lines = [head, *table(_COLUMNS, rows, right=("parameters",))] if ours else []
    if words:
        return "\n".join([*lines, *theirs])
    return "\n".join([
        *lines,
        f"timm:NAME: {len(theirs):,} networks of timm; `spectral networks WORDS` searches them",
        "module:function: one of your own, see docs/networks.md",
    ])  # fmt: skip


def values(words: tuple[str, ...]) -> dict[str, Any]:
    """The same for programs."""
    ours, theirs = find(words)
    return {"plane": PLANE, "classes": CLASSES, "ours": [each._asdict() for each in ours],
            "timm": theirs}  # fmt: skip


def _ours(name: str) -> Ours:
    channels, size, _ = PLANE
    with on_meta():
        network = models.build(name, classes=CLASSES, channels=channels, size=size)
    count = sum(weight.numel() for weight in network.parameters())
    return Ours(name, count, [*models.arguments(name)])
