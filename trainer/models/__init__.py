"""Networks by name: (classes, channels, size) in, a torch module out.

A new family is one module here and one line in `_FAMILIES`.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from pipeline.errors import ConfigError
from trainer.models import fc, resnet_cifar, resnet_imagenet

# Pattern of the name, its examples, and the builder; groups of the pattern are integers
# that the builder takes first. Builders check their own arguments.
_FAMILIES: tuple[tuple[str, str, Callable[..., nn.Module]], ...] = (
    (r"cifar-resnet(\d+)", "cifar-resnet20 (any 6n+2)", resnet_cifar.build),
    (r"fc(\d+)", "fc8 (any depth)", fc.build),
    (r"resnet(\d+)", "resnet18, resnet34, resnet50", resnet_imagenet.build),
)
_GIVEN = ("classes", "channels", "size")


def build(name: str, *, classes: int, channels: int, size: int, **args: Any) -> nn.Module:
    """The network `name` for square inputs of `size` px: (B, channels, size, size) float →
    (B, classes) logits. ConfigError for a name, argument or size that it does not know.
    """
    for pattern, _, builder in _FAMILIES:
        if match := re.fullmatch(pattern, name):
            _check_args(name, builder, args)
            numbers = [int(group) for group in match.groups()]
            return builder(*numbers, classes=classes, channels=channels, size=size, **args)
    examples = ", ".join(example for _, example, _ in _FAMILIES)
    raise ConfigError(f"no network {name!r}; known are {examples}")


def _check_args(name: str, builder: Callable[..., nn.Module], args: dict[str, Any]) -> None:
    parameters = inspect.signature(builder).parameters.values()
    valid = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _GIVEN]
    for key in args:
        if key not in valid:
            raise ConfigError(
                f"network {name} takes no model_args.{key}; valid are {', '.join(valid) or 'none'}"
            )
