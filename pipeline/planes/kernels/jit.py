"""The one decorator of all kernels.

No fastmath: float operations keep their order and rounding, so that the same image
gives the same bytes on every machine.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def _sources() -> str:
    """Short digest of all kernels: numba's cache looks at a function's own file alone, and would
    keep what another module, since changed, was compiled into.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_SOURCES = _sources()


def kernel(function: F) -> F:
    """Compile on first call, keep on disk, release the GIL.

    No kernel takes a contiguous (n,) uint8 array: FFCV's loaders alter numba's own object for that
    type, and what is known of a kernel by it is not found again.
    """
    function.__qualname__ = f"{function.__qualname__}_{_SOURCES}"  # names the file on disk
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
