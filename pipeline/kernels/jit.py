"""The one decorator of all kernels.

No fastmath: float operations keep their order and rounding, so that the same image
gives the same bytes on every machine.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile on first call, keep on disk, release the GIL."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
