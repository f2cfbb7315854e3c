"""libzstd for compiled code: contexts, the version, and a symbol that kernels call.

The library is the one inside the zstandard package, which the lock file pins: frames are
the same wherever the same requirements are installed. Without it (other builds of that
package), the system's libzstd.so.1; then bytes depend on its version.
"""

import ctypes
import weakref
from functools import cache
from pathlib import Path

import llvmlite.binding
import zstandard

from pipeline.errors import ConfigError

# Names that `pipeline.kernels.frames` links against; numba's cache on disk keeps the name,
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
def _library() -> ctypes.CDLL:
    pinned = sorted(Path(zstandard.__file__).parent.glob("_cffi*.so"))
    for name in (*map(str, pinned), "libzstd.so.1"):
        try:
            library = ctypes.CDLL(name)
            functions = {
                COMPRESS: library.ZSTD_compress2,
                COMPRESS_SEQUENCES: library.ZSTD_compressSequences,
            }
        except (OSError, AttributeError):
            continue
        library.ZSTD_createCCtx.restype = ctypes.c_void_p
        library.ZSTD_createCCtx.argtypes = []
        library.ZSTD_freeCCtx.argtypes = [ctypes.c_void_p]
        library.ZSTD_CCtx_setParameter.restype = ctypes.c_size_t
        library.ZSTD_CCtx_setParameter.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        library.ZSTD_versionString.restype = ctypes.c_char_p
        library.ZSTD_versionString.argtypes = []
        for symbol, function in functions.items():
            address = ctypes.cast(function, ctypes.c_void_p).value
            llvmlite.binding.add_symbol(symbol, address)
        return library
    raise ConfigError("no libzstd with ZSTD_compressSequences: install Debian's libzstd1")


def zstd_version() -> str:
    """Version of the library that compresses."""
    version: bytes = _library().ZSTD_versionString()
    return version.decode("ascii")


class CompressionContext:
    """A ZSTD_CCtx for the frames of `pipeline.kernels.frames`; one per thread."""

    def __init__(self) -> None:
        library = _library()
        self.address: int = library.ZSTD_createCCtx() or 0
        if not self.address:
            raise MemoryError
        weakref.finalize(self, library.ZSTD_freeCCtx, self.address)
        for parameter, value in _PARAMETERS.items():
            if library.ZSTD_CCtx_setParameter(self.address, parameter, value) > 2**32:
                raise ConfigError(f"libzstd {zstd_version()} is too old: 1.5.4 is needed")
