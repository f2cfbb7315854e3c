"""Training state in, files that are whole or absent out; and back, never unpickled."""

import io
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import DamagedError
from trainer.files import write_whole


def save(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values, in torch's format."""
    buffer = io.BytesIO()  # torch would answer a full disk with an error about positions
    torch.save(state, buffer)
    write_whole(path, buffer.getbuffer())


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """DamagedError for anything that is not a checkpoint of plain tensors and numbers."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many types on damaged or foreign files
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(
            f"{path} cannot be loaded as a checkpoint: {first}; remove {path.parent} and train "
            "this shard again"
        ) from error
    if not isinstance(state, dict) or "model" not in state:
        raise DamagedError(f"{path} is no checkpoint of this tool: no network in it")
    return state
