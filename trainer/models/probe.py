"""Looks whether a network of others takes the planes at hand, before anything is trained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, SpectralError
from trainer.models.meta import on_meta

_BATCH = 2  # batch norm in training wants more than one value
_LONGEST = 300  # characters of somebody else's error


def probe(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], classes: int) -> int:
    """Bytes of its weights. ConfigError unless it answers inputs (B, *shape) by (B, classes)
    logits, in training and in evaluation: without memory for weights, or else on the CPU.
    """
    try:
        try:
            with on_meta():
                return _checked(name, build(), shape, classes)
        except RuntimeError:  # of a layer that cannot do without memory, or as on the CPU
            return _checked(name, build(), shape, classes)
    except SpectralError:
        raise
    except Exception as error:
        raise ConfigError(
            f"network {name} cannot take inputs of {_sides(shape)}: {shortened(error)}"
        ) from error


def shortened(error: Exception) -> str:
    """Somebody else's error in a line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:_LONGEST]}{'…' * (len(said) > _LONGEST)}"


@torch.no_grad()
def _checked(name: str, network: nn.Module, shape: tuple[int, ...], classes: int) -> int:
    for training in (True, False):
        answer = network.train(training)(torch.zeros(_BATCH, *shape))
        fits = isinstance(answer, Tensor) and answer.is_floating_point()
        if not fits or answer.shape != (_BATCH, classes):
            what = "×".join(map(str, answer.shape)) if fits else f"a {type(answer).__name__}"
            raise ConfigError(
                f"network {name} answers {_BATCH} inputs of {_sides(shape)} by {what}, not by a "
                f"tensor of {_BATCH}×{classes} logits"
            )
    if not any(weight.requires_grad for weight in network.parameters()):
        raise ConfigError(f"network {name} has no weights that learn")
    return sum(weight.nbytes for weight in network.parameters())


def _sides(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
