"""Joins the weights of networks in one safetensors file, without holding them in memory.

The format: 8 bytes, the length of the header; the header, JSON, with type, shape and place of each
tensor; the values. Wide types come first, so that all lie at multiples of their size.
"""

import json
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import DamagedError

_PIECE = 1 << 24  # bytes that are copied at a time


class _Place(NamedTuple):
    """Of one tensor: its new name, type and shape; and where its values are."""

    name: str
    dtype: str
    shape: list[int]
    file: Path
    start: int
    size: int


def join(files: dict[str, Path], to: Path) -> None:
    """Tensors `name` of each file as `prefix.name`. files: by prefix, each of them whole."""
    places = [place for prefix, path in files.items() for place in _places(prefix, path)]
    places.sort(key=lambda place: (-_width(place), place.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for place in places:
        header[place.name] = {
            "dtype": place.dtype,
            "shape": place.shape,
            "data_offsets": [at, at + place.size],
        }
        at += place.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with to.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for place in places:
            with place.file.open("rb") as file:
                file.seek(place.start)
                _copy(file, out, place.size)


def tensors_of(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of one network by their own names. DamagedError, OSError."""
    start = prefix + "."
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(start)]  # noqa: SIM118
            return {name.removeprefix(start): file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def _places(prefix: str, path: Path) -> list[_Place]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = []
    for name, row in header.items():
        start, end = row["data_offsets"]
        found.append(
            _Place(f"{prefix}.{name}", row["dtype"], row["shape"], path, 8 + length + start,
                   end - start)
        )  # fmt: skip
    return found


def _width(place: _Place) -> int:
    """Bytes of a value; 0 of a tensor without any."""
    count = 1
    for side in place.shape:
        count *= side
    return place.size // count if count else 0


def _copy(file: BinaryIO, out: BinaryIO, size: int) -> None:
    while size:
        piece = file.read(min(size, _PIECE))
        if not piece:
            raise DamagedError(f"{file.name} ends before its header says")
        out.write(piece)
        size -= len(piece)
