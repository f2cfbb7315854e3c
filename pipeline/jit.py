"""The one decorator of all kernels, and how they call C.

No fastmath: float operations keep their order and rounding, so that the same image
gives the same bytes on every machine.
"""

import atexit
import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba

F = TypeVar("F", bound=Callable[..., Any])


@cache
def _sources(folder: Path) -> str:
    """Short digest of all that a kernel in `folder` may be made of: numba's cache looks at a
    function's own file alone, and would keep what another module, since changed, was compiled into.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(
        {path for at in (here / "planes", here / "format", folder) for path in at.rglob("*.py")}
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def kernel(function: F) -> F:
    """Compile on first call, keep on disk, release the GIL.

    No kernel takes a contiguous (n,) uint8 array that can be written to: FFCV's loaders alter
    numba's own object for that type, and what is known of a kernel by it is not found again.
    """
    return _kept(function, parallel=False)


def parallel_kernel(function: F) -> F:
    """A kernel whose `prange` is shared by numba's threads."""
    return _kept(function, parallel=True)


def external(name: str, function: Any, signature: Any) -> Any:
    """A C function, of ctypes, for kernels; by a name of our own, since numba's cache on disk keeps
    a name, not the address of one process.
    """
    address = ctypes.cast(function, ctypes.c_void_p).value
    llvmlite.binding.add_symbol(name, address)
    return numba.types.ExternalFunction(name, signature)


def _kept(function: F, *, parallel: bool) -> F:
    sources = _sources(Path(function.__code__.co_filename).parent)
    function.__qualname__ = f"{function.__qualname__}_{sources}"  # names the file on disk
    compiled = numba.njit(nogil=True, error_model="numpy", parallel=parallel)(function)
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
