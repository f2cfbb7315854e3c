"""Reads pickles of numbers, strings and NumPy arrays, and runs nothing that is in them.

A pickle can name any function and have it called. Here the few names that arrays need stand
for classes of ours, which only keep what they are given; every other name is refused. And it is
Python that reads here, not C: ten bytes make the reader in C take 64 GB for its memo.
"""

import io
import pickle
from math import prod
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import SourceError


class _RefusedError(pickle.UnpicklingError):
    """What we say ourselves; the reader's own errors are of its workings."""


class _Dtype:
    """Stands for numpy.dtype: keeps its code."""

    def __init__(self, code: bytes | str, align: int = 0, copy: int = 0) -> None:
        self.code = text(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = text(state[1])


class _Array:
    """Stands for numpy.ndarray: keeps its shape and bytes."""

    value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.code not in ("u1", "i8", "i4") or not isinstance(data, bytes):
            raise _RefusedError(f"an array of {dtype.code}")
        order = dtype.order if dtype.order in ("<", ">") else "="
        flat = np.frombuffer(data, np.dtype(dtype.code).newbyteorder(order))
        if prod(shape) != len(flat):
            raise _RefusedError(f"an array of {len(flat)} values, not of shape {shape}")
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(_kind: Any, _shape: Any, _code: Any) -> _Array:
    return _Array()


def _encode(value: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise _RefusedError(f"the encoding {encoding}")
    return value.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


_PYTHON: Any = pickle._Unpickler
_REFUSED = (  # no image data needs them, and some take as much memory as they say
    pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.PERSID,
    pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4,
)  # fmt: skip


class _Unpickler(_PYTHON):  # type: ignore[misc]
    dispatch: ClassVar = {
        code: do for code, do in _PYTHON.dispatch.items() if bytes([code]) not in _REFUSED
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for."""
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _RefusedError(f"it asks for {module}.{name}, which no image data needs") from None


def load_pickle(data: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle, arrays as NumPy arrays; `where` names it in errors."""
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(content, dict):
            raise _RefusedError(f"it holds {type(content).__name__}")
        return {text(key): _plain(value) for key, value in content.items()}
    except Exception as error:  # damaged pickles raise whatever their damage leads to
        why = error if isinstance(error, _RefusedError) else "it is damaged or not whole"
        raise SourceError(
            f"{where}: expected a pickled dictionary of arrays and lists: {why}"
        ) from error


def text(value: bytes | str) -> str:
    """Strings of Python 2 are bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value
