"""Networks without memory for their weights: to be counted, or tried."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWS = (Tensor.normal_, Tensor.uniform_)


class _NoDraws(TorchFunctionMode):
    """First weights that are nowhere are not drawn either: torch would import its compiler for it,
    which takes 4 s of CPU.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function in _DRAWS and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """What is built within has shapes alone."""
    with torch.device("meta"), _NoDraws():
        yield
