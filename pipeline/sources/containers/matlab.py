"""Reads tables (struct arrays) from MATLAB files of version 5, as ImageNet's devkit has one.

SciPy's reader crashes on damaged ones. The format: "MAT-File Format", MathWorks, chapter 1.
"""

import zlib
from collections.abc import Iterator
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_HEADER = 128  # bytes
_ORDERS: dict[bytes, "Order"] = {b"IM": "<", b"MI": ">"}
_MATRIX, _ZIPPED = 14, 15  # kinds of elements
_STRUCT, _CHAR, _NUMERIC = 2, 4, range(6, 16)  # classes of matrices
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8",
            13: "u8"}  # fmt: skip
_LETTERS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_LARGEST = 1 << 28  # bytes, inflated
Order = Literal["<", ">"]
Value = str | float | None


def table(data: bytes, name: str) -> list[dict[str, Value]]:
    """The rows of a struct array, by field; numbers and texts, None for all else. KeyError if there
    is no such array, ValueError if the file is damaged.
    """
    order = _ORDERS.get(data[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("no MATLAB file of version 5")
    for kind, content in _elements(data[_HEADER:], order):
        if kind == _ZIPPED:
            ((kind, content),) = _elements(_inflated(content), order)
        if kind == _MATRIX:
            kind_of, size, called, rest = _matrix(content, order)
            if kind_of == _STRUCT and called == name:
                return _rows(size, rest, order)
    raise KeyError(name)


def _rows(size: int, parts: Iterator[tuple[int, bytes]], order: Order) -> list[dict[str, Value]]:
    width = int(_numbers(*_next(parts), order)[0])
    _, names = _next(parts)
    if width < 1:
        raise ValueError(f"names of {width} bytes")
    fields = [names[i : i + width].split(b"\0")[0].decode() for i in range(0, len(names), width)]
    return [{field: _value(*_next(parts), order) for field in fields} for _ in range(size)]


def _value(kind: int, content: bytes, order: Order) -> Value:
    """A text, or the first of some numbers."""
    if kind != _MATRIX or not content:
        return None
    kind_of, size, _, parts = _matrix(content, order)
    if kind_of == _CHAR:
        kind, content = _next(parts)
        ending = {"<": "-le", ">": "-be"}[order]
        if (letters := _LETTERS.get(kind)) is None:
            raise ValueError(f"no text, but an element of kind {kind}")
        return content.decode(letters + ending if letters[-2:] in ("16", "32") else letters)
    if kind_of in _NUMERIC and size:
        return float(_numbers(*_next(parts), order)[0])
    return None


def _matrix(content: bytes, order: Order) -> tuple[int, int, str, Iterator[tuple[int, bytes]]]:
    """(its class, how many things are in it, its name, the elements that follow)."""
    parts = _elements(content, order)
    flags = _numbers(*_next(parts), order)
    size = prod(_numbers(*_next(parts), order).tolist())
    _, name = _next(parts)
    return int(flags[0]) & 0xFF, size, name.decode(), parts


def _next(parts: Iterator[tuple[int, bytes]]) -> tuple[int, bytes]:
    found = next(parts, None)
    if found is None:
        raise ValueError("it is not whole")
    return found


def _numbers(kind: int, content: bytes, order: Order) -> NDArray[Any]:
    found = np.frombuffer(content, np.dtype(_NUMBERS.get(kind, "V")).newbyteorder(order))
    if kind not in _NUMBERS or not len(found):
        raise ValueError(f"no numbers, but an element of kind {kind}")
    return found


def _elements(data: bytes, order: Order) -> Iterator[tuple[int, bytes]]:
    """(kind, content) of each; small ones have their size and content in the first eight bytes."""
    at = 0
    while at < len(data):
        head = np.frombuffer(data[at : at + 8].ljust(8, b"\0"), f"{order}u4").tolist()
        small, start = head[0] >> 16, at + 8
        size = small or head[1]
        if small:
            start = at + 4
        if small > 4 or start + size > len(data):
            raise ValueError("it is not whole")
        yield head[0] & 0xFFFF, data[start : start + size]
        at = at + 8 if small else start + size
        if head[0] != _ZIPPED:
            at = -(-at // 8) * 8


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _LARGEST)
    except zlib.error as error:
        raise ValueError(str(error)) from error
