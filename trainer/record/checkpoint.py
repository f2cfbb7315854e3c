"""Training state in, files that are whole or absent out; and back, never unpickled."""

import io
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import DamagedError
from pipeline.files import write_beside, write_whole

log = logging.getLogger(__name__)


def save(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values, in torch's format."""
    write_whole(path, _packed(state))


def save_keeping(path: Path, previous: Path, state: dict[str, Any]) -> None:
    """`save`; what was at `path` is `previous` from then on. At every moment one is whole."""
    partial = write_beside(path, _packed(state))
    if path.exists():
        link = previous.with_name(previous.name + ".partial")
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:  # some disks have no links; for a moment there is but the one before
            link = path
        link.replace(previous)
    partial.replace(path)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """DamagedError for anything that is not a checkpoint of plain tensors and numbers."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            if damaged := archive.testzip():
                raise DamagedError(f"{path} cannot be loaded as a checkpoint: {damaged} is damaged")
        state = torch.load(path, map_location=device, weights_only=True)
    except (DamagedError, OSError):
        raise
    except Exception as error:  # many types on damaged or foreign files
        why = type(error).__name__ if "weights_only" in str(error) else str(error).splitlines()[:1]
        raise DamagedError(f"{path} cannot be loaded as a checkpoint: {why}") from error
    if not isinstance(state, dict) or "model" not in state:
        raise DamagedError(f"{path} is no checkpoint of this tool: no network in it")
    return state


def load_newest(path: Path, previous: Path, device: torch.device) -> dict[str, Any] | None:
    """What `save_keeping` left: the one before where the last is damaged, which is said."""
    if not path.exists():
        if not previous.exists():
            return None
        log.warning("%s is missing; going on from the one before, %s", path, previous.name)
        return load(previous, device)
    try:
        return load(path, device)
    except DamagedError as error:
        if not previous.exists():
            raise DamagedError(
                f"{error}; remove {path.parent} and train this shard again"
            ) from error
        log.warning("%s; going on from the one before, %s", error, previous.name)
        return load(previous, device)


def _packed(state: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()  # torch would answer a full disk with an error about positions
    torch.save(state, buffer)
    return buffer.getbuffer()
