"""Keeps the answers of networks on small splits, so that fusing them again takes seconds."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.files import write_whole
from trainer.fusion.members import Member
from trainer.fusion.panel import Answers, Panel
from trainer.process.device import autocast_dtype
from trainer.run.network import recipe_of

MOST = 2**30  # bytes of the logits of all networks on a split
_KEY = "spectral.key"


def answers(panel: Panel, split: str, chosen: NDArray[np.int64] | None = None) -> Iterator[Answers]:
    """As the panel's own; of files beside each network's weights where all of these are there and
    were made by the same weights, from the same data, in the same way.
    """
    samples = panel.data.manifest.written(split) if chosen is None else len(chosen)
    networks, classes = len(panel.members), len(panel.data.manifest.classes)
    if 4 * samples * networks * classes > MOST:
        yield from panel.answers(split, chosen)
        return
    keys = [_key(panel, member, split, chosen) for member in panel.members]
    files = [_file(member, split) for member in panel.members]
    if not all(_holds(path, key) for path, key in zip(files, keys, strict=True)):
        _write(gathered(panel.answers(split, chosen), networks, samples, classes), files, keys)
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(path, "pt")) for path in files]
        slices = [file.get_slice("logits") for file in opened]
        labels = opened[0].get_tensor("labels").to(panel.device)
        size = max(1, 2**24 // (networks * classes))
        for start in range(0, samples, size):
            part = torch.stack([one[start : start + size] for one in slices])
            yield part.to(panel.device), labels[start : start + size]


def gathered(
    found: Iterable[Answers], networks: int, samples: int, classes: int
) -> tuple[Tensor, Tensor]:
    """All answers on the CPU, as one; never twice in memory."""
    logits = torch.empty(networks, samples, classes)
    labels = torch.empty(samples, dtype=torch.int64)
    start = 0
    for some, truth in found:
        part = slice(start, start + len(truth))
        logits[:, part], labels[part] = some.cpu(), truth.cpu()
        start += len(truth)
    return logits, labels


def _write(found: tuple[Tensor, Tensor], files: list[Path], keys: list[str]) -> None:
    """A file for each network."""
    logits, labels = found
    for path, key, own in zip(files, keys, logits, strict=True):
        path.parent.mkdir(exist_ok=True)
        write_whole(path, save({"logits": own, "labels": labels}, {_KEY: key}))


def _file(member: Member, split: str) -> Path:
    return member.run.path / "answers" / f"{split}.safetensors"


def _holds(path: Path, key: str) -> bool:
    """A file that is damaged is written anew."""
    try:
        with safe_open(path, "np") as file:
            return bool((file.metadata() or {}).get(_KEY) == key)
    except (OSError, SafetensorError):
        return False


def _key(panel: Panel, member: Member, split: str, chosen: NDArray[np.int64] | None) -> str:
    """Whatever the answers depend on."""
    device = panel.device
    which = None if chosen is None else hashlib.sha256(chosen.tobytes()).hexdigest()
    dtype = autocast_dtype(recipe_of(member.run).precision, device)
    parts: dict[str, Any] = {
        "weights": member.digest,
        "data": panel.data.manifest.digest,
        "split": split,
        "samples": which,
        "flip": panel.flip,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(dtype),
        "torch": torch.__version__,
    }
    return json.dumps(parts, sort_keys=True)
