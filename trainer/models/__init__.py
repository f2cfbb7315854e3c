"""Builds a network by its name: one of ours, of timm's, or of the user's own.

A new family of ours is one module here and one line in `_FAMILIES`. `width` is always the channels
of the first stage's 3×3 convolutions (of `fc`, the units of a layer); factors stand in the name.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.errors import ConfigError
from trainer.models import (
    air,
    alexnet,
    cnn,
    densenet,
    fc,
    others,
    probe,
    pyramidnet,
    resnet,
    resnet_preact,
    shake_shake,
    vgg,
    wrn,
)


class Family(NamedTuple):
    """Groups of the name's pattern are integers that the builder takes first; its keyword
    arguments are what a recipe's model_args may say. Builders check their own arguments.
    """

    pattern: str
    examples: tuple[str, ...]
    build: Callable[..., nn.Module]
    depths: str = ""


_FAMILIES = (
    Family(r"cifar-resnet(\d+)", ("cifar-resnet20",), resnet.build_cifar, "any 6n+2"),
    Family(r"fc(\d+)", ("fc8",), fc.build, "any depth"),
    Family(r"cnn", ("cnn",), cnn.build),
    Family(r"resnet(\d+)", ("resnet18", "resnet34", "resnet50"), resnet.build),
    Family(r"resnet(\d+)x(\d+)", ("resnet20x4", "resnet18x1"), resnet.build_zero, "depth, width"),
    Family(r"preact-resnet(\d+)", ("preact-resnet20",), resnet_preact.build, "any 6n+2"),
    Family(r"se-preact-resnet(\d+)", ("se-preact-resnet56",), resnet_preact.build_se, "any 6n+2"),
    Family(
        r"imagenet-preact-resnet(\d+)", ("imagenet-preact-resnet18",), resnet_preact.build_imagenet
    ),
    Family(r"wrn-(\d+)-(\d+)", ("wrn-28-10",), wrn.build),
    Family(r"densenet-(\d+)-(\d+)", ("densenet-100-12",), densenet.build),
    Family(r"densenet-bc-(\d+)-(\d+)", ("densenet-bc-100-12",), densenet.build_bc),
    Family(r"densenet(\d+)", ("densenet121",), densenet.build_imagenet),
    Family(r"pyramidnet-(\d+)-(\d+)", ("pyramidnet-110-84",), pyramidnet.build),
    Family(
        r"imagenet-pyramidnet-(\d+)-(\d+)",
        ("imagenet-pyramidnet-200-300",),
        pyramidnet.build_imagenet,
    ),
    Family(r"resnext(\d+)-(\d+)x(\d+)d", ("resnext29-8x64d",), resnet.build_cifar_resnext),
    Family(
        r"imagenet-resnext(\d+)-(\d+)x(\d+)d",
        ("imagenet-resnext50-32x4d",),
        resnet.build_resnext,
    ),
    Family(r"shake-shake(\d+)-2x(\d+)d", ("shake-shake26-2x64d",), shake_shake.build),
    Family(r"vgg15", ("vgg15",), vgg.build_cifar),
    Family(r"vgg16", ("vgg16",), vgg.build),
    Family(r"alexnet", ("alexnet",), alexnet.build),
    Family(r"air", ("air",), air.build),
)
_GIVEN = ("classes", "channels", "size")
_KINDS = {int: "an integer", float: "a number", bool: "true or false"}


def build(
    name: str,
    folder: Path | None = None,
    /,
    *,
    classes: int,
    channels: int,
    size: int,
    **args: Any,
) -> nn.Module:
    """The network `name` for square inputs of `size` px: (B, channels, size, size) float →
    (B, classes) logits. ConfigError for a name, argument or size that it does not know.
    `folder`: in which the module of a network of the user's own lies.
    """
    given = {"classes": classes, "channels": channels, "size": size}
    try:
        if others.is_other(name):
            return others.build(name, folder, **given, **args)
        family, numbers = _find(name)
        _check(args, _parameters(family))
        return family.build(*numbers, **given, **args)
    except ConfigError as error:
        raise ConfigError(f"network {name}: {error}") from error
    except Exception as error:  # of somebody else's code
        unclear = isinstance(error, RuntimeError) and torch.get_default_device().type == "meta"
        if unclear or not others.is_other(name):  # see `probe`
            raise
        raise ConfigError(f"network {name}: {probe.shortened(error)}") from error


def examples() -> list[str]:
    """A name or more of each family."""
    return [name for family in _FAMILIES for name in family.examples]


def arguments(name: str) -> dict[str, Any]:
    """What the network's model_args may say, with the defaults."""
    return {p.name: p.default for p in _parameters(_find(name)[0])}


def _find(name: str) -> tuple[Family, list[int]]:
    for family in _FAMILIES:
        if match := re.fullmatch(family.pattern, name, re.ASCII):
            return family, [int(group) for group in match.groups()]
    known = (f"{', '.join(f.examples)}{f' ({f.depths})' * bool(f.depths)}" for f in _FAMILIES)
    raise ConfigError(
        f"no network of this name; known are {', '.join(known)}; timm:NAME, and module:function of "
        "your own"
    )


def _parameters(family: Family) -> list[inspect.Parameter]:
    found = inspect.signature(family.build).parameters.values()
    return [p for p in found if p.kind is p.KEYWORD_ONLY and p.name not in _GIVEN]


def _check(args: dict[str, Any], parameters: list[inspect.Parameter]) -> None:
    known = {p.name: p.annotation for p in parameters}
    for key, value in args.items():
        if key not in known:
            valid = f"valid are {', '.join(known)}" if known else "this network has no arguments"
            raise ConfigError(f"no model_args.{key} here; {valid}")
        if not _fits(value, known[key]):
            wanted = _KINDS.get(known[key], "a list of true and false")
            raise ConfigError(f"model_args.{key} = {value!r}: must be {wanted}")


def _fits(value: object, kind: Any) -> bool:
    """A value of a recipe file, which has no tuples and for which 1 is a number too."""
    if kind == Sequence[bool]:
        return isinstance(value, list | tuple) and all(type(v) is bool for v in value)
    return type(value) is kind or (kind is float and type(value) is int)
