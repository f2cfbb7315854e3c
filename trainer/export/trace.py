"""Traces a module with torch.export, for batches of any size."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pipeline.errors import ConfigError

IMAGES = 2  # to trace with: a batch of 1 would be fixed


def traced(module: nn.Module, examples: tuple[Tensor, ...]) -> ExportedProgram:
    """examples: of each input, a batch of at least two. ConfigError for a network that torch.export
    cannot take, or whose answers are for this number of images alone.
    """
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in examples)
    kinds = {p.kind for p in inspect.signature(module.forward).parameters.values()}
    variadic = inspect.Parameter.VAR_POSITIONAL in kinds  # one argument to torch.export
    with plain_errors("torch.export"):
        return torch.export.export(
            module.eval(), examples, dynamic_shapes=(shapes,) if variadic else shapes, strict=False
        )


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Whatever an exporter makes of a network that it cannot take, as one line."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:  # of many types
        lines = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"nothing was written: {what} cannot take this classifier: {lines[0]} (safetensors can)"
        ) from error
