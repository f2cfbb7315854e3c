"""libzstd for compiled code: contexts, the version, symbols and functions that kernels call.

The library is the one inside the zstandard package, which the lock file pins: frames are
the same wherever the same requirements are installed. Without it (other builds of that
package), the system's libzstd.so.1; then bytes depend on its version.
"""

import ctypes
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import zstandard

from pipeline.errors import ConfigError

# Names that `pipeline.planes.kernels.frames` links against; numba's cache on disk keeps the name,
# not the address.
COMPRESS = "spectral_ZSTD_compress2"
COMPRESS_SEQUENCES = "spectral_ZSTD_compressSequences"

# ZSTD_cParameter of zstd.h. The three of four digits are among its experimental ones.
_PARAMETERS = {
    100: 1,  # compressionLevel
    201: 1,  # checksumFlag
    1002: 1,  # literalCompressionMode: always tried
    1008: 1,  # blockDelimiters: explicit
    1016: 1,  # repcodeResolution: offset 1 again and again costs nothing
}


@cache
def library() -> ctypes.CDLL:
    """The loaded library, with the types of all that is called of it."""
    pinned = sorted(Path(zstandard.__file__).parent.glob("_cffi*.so"))
    for name in (*map(str, pinned), "libzstd.so.1"):
        try:
            found = ctypes.CDLL(name)
            functions = {
                COMPRESS: found.ZSTD_compress2,
                COMPRESS_SEQUENCES: found.ZSTD_compressSequences,
            }
        except (OSError, AttributeError):
            continue
        _declare(found)
        for symbol, function in functions.items():
            address = ctypes.cast(function, ctypes.c_void_p).value
            llvmlite.binding.add_symbol(symbol, address)
        return found
    raise ConfigError("no libzstd with ZSTD_compressSequences: install Debian's libzstd1")


def _declare(found: ctypes.CDLL) -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ZSTD_createCCtx": (pointer, []),
        "ZSTD_freeCCtx": (size, [pointer]),
        "ZSTD_CCtx_setParameter": (size, [pointer, ctypes.c_int, ctypes.c_int]),
        "ZSTD_createDCtx": (pointer, []),
        "ZSTD_freeDCtx": (size, [pointer]),
        "ZSTD_decompressDCtx": (size, [pointer, pointer, size, pointer, size]),
        "ZSTD_versionString": (ctypes.c_char_p, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments


def zstd_version() -> str:
    """Version of the library that compresses."""
    version: bytes = library().ZSTD_versionString()
    return version.decode("ascii")


class CompressionContext:
    """A ZSTD_CCtx for the frames of `pipeline.planes.kernels.frames`; one per thread."""

    def __init__(self) -> None:
        zstd = library()
        self.address: int = zstd.ZSTD_createCCtx() or 0
        if not self.address:
            raise MemoryError
        weakref.finalize(self, zstd.ZSTD_freeCCtx, self.address)
        for parameter, value in _PARAMETERS.items():
            if zstd.ZSTD_CCtx_setParameter(self.address, parameter, value) > 2**32:
                raise ConfigError(f"libzstd {zstd_version()} is too old: 1.5.4 is needed")
