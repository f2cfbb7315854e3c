"""The one decorator of all kernels.

No fastmath: float operations keep their order and rounding, so that the same image
gives the same bytes on every machine.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
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
    for package in ("planes", "format"):
        for path in sorted((Path(__file__).parent / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_SOURCES = _sources()


def kernel(function: F) -> F:
    """Compile on first call, keep on disk, release the GIL.

    No kernel takes a contiguous (n,) uint8 array: FFCV's loaders alter numba's own object for that
    type, and what is known of a kernel by it is not found again.
    """
    function.__qualname__ = f"{function.__qualname__}_{_SOURCES}"  # names the file on disk
    compiled = numba.njit(nogil=True, error_model="numpy")(function)
    try:
        compiled.enable_caching()
    except RuntimeError:  # neither the installation nor the home can be written to
        _use_temporary_cache()
        compiled.enable_caching()
    return cast(F, compiled)


def _use_temporary_cache() -> None:
    """A folder for what is compiled, for this process and those that it starts, gone at its end."""
    folder = tempfile.mkdtemp(prefix="spectral-compiled-")
    os.environ["NUMBA_CACHE_DIR"] = folder
    numba.config.reload_config()  # type: ignore[no-untyped-call]
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
