"""The weights of a network as a safetensors file, which other programs read too.

The format has no checksum, so the file's own metadata holds one of all values.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import DamagedError
from pipeline.files import write_whole

# One key: of several the library writes the order by chance, and equal networks have equal files
_KEY = "spectral"


@dataclass(frozen=True)
class Weights:
    """What a file holds: tensors by name, on the CPU; `facts` that were written with them; the
    digest of all values, in hexadecimal, which tells one network from another.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    digest: str


def save_weights(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a file that is whole or absent, after a power cut too."""
    # batch norm's buffers may be of one memory, and kernels in the order of channels-last
    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    separate = {name: value.clone() for name, value in plain.items()}
    own = json.dumps({"digest": digest_of(separate), "facts": facts})
    write_whole(path, save(separate, {_KEY: own}))


def load_weights(path: Path) -> Weights:
    """DamagedError for what is no such file, or not as it was written. OSError."""
    content = path.read_bytes()
    try:
        own, tensors = _own(path), load(content)
        facts, digest = own["facts"], own["digest"]
    except (SafetensorError, ValueError, KeyError) as error:
        raise _foreign(path, error) from error
    if digest_of(tensors) != digest:
        raise DamagedError(f"{path} is damaged: its values are not those that were written")
    return Weights(tensors, facts, digest)


def identity(path: Path) -> str:
    """The digest that a file says its values have, without reading them. DamagedError, OSError."""
    try:
        return str(_own(path)["digest"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise _foreign(path, error) from error


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Of names and values; the order within a file does not matter."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _own(path: Path) -> dict[str, Any]:
    with safe_open(path, "np") as file:
        own: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
    return own


def _foreign(path: Path, error: Exception) -> DamagedError:
    why = f"it lacks {error}" if isinstance(error, KeyError) else error
    return DamagedError(f"{path} cannot be loaded as weights of this tool: {why}")
