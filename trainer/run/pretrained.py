"""Starts a network from a file of weights, and says what of them had to be refitted.

Takes the weights of a run, and state dicts as torchvision and timm publish them. The first
convolution and the last linear layer may have other shapes there, all else has to fit; what timm
converts itself for one of its networks, such as tables of positions of another size, it does.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from pipeline.errors import ConfigError, DamagedError

log = logging.getLogger(__name__)
_SHOWN = 5  # names in an error


def start_from(network: nn.Module, path: Path) -> None:
    """Load the weights of `path` into the network; what was refitted is said."""
    own = network.state_dict()
    found = _state_dict(path)
    for name in own:
        if name.endswith("num_batches_tracked"):  # not in older files, and without effect here
            found.setdefault(name, own[name])
    found = _converted_by_timm(path, found, network)
    stems, heads = _ends(network)
    for name in (f"{head}.{part}" for head in heads for part in ("weight", "bias")):
        if name in own and (name not in found or found[name].shape != own[name].shape):
            log.info("%s: %s starts anew, %s", path, name, _shapes(found.get(name), own[name]))
            found[name] = own[name]
    for kernel in (f"{stem}.weight" for stem in stems):
        if kernel in found and found[kernel].ndim == 4 and found[kernel].shape != own[kernel].shape:
            log.info("%s: %s is refitted, %s", path, kernel, _shapes(found[kernel], own[kernel]))
            found[kernel] = refit_kernel(found[kernel], own[kernel].shape)
    _check(path, found, own)
    network.load_state_dict({name: found[name] for name in own})


def refit_kernel(kernel: Tensor, shape: torch.Size) -> Tensor:
    """A first convolution (out, in, h, w) for other sides and channels, which answers an image
    that is smooth at its scale as before: resampled, with the same sum.
    """
    if kernel.shape[0] != shape[0]:
        raise ConfigError(
            f"--init: the first convolution there has {kernel.shape[0]} outputs, here {shape[0]}"
        )
    kernel = kernel.float()
    if kernel.shape[1] != shape[1]:  # grey from colour: as if all channels were the same
        kernel = kernel.sum(dim=1, keepdim=True).expand(-1, shape[1], -1, -1) / shape[1]
    rows, columns = (_resampling(shape[i], kernel.shape[i]) for i in (2, 3))
    return torch.einsum("yh,oihw,xw->oiyx", rows, kernel, columns)


def _resampling(outputs: int, inputs: int) -> Tensor:
    """Linear interpolation, (outputs, inputs), each input's shares scaled to add up to 1."""
    identity = torch.eye(inputs)[None, None]
    matrix = F.interpolate(identity, (outputs, inputs), mode="bilinear", antialias=True)[0, 0]
    return matrix / matrix.sum(dim=0)


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        content = _content(path)
    except OSError:
        raise
    except Exception as error:  # many types on damaged or foreign files
        hint = ""
        if "weights_only" in str(error):  # objects, which may run code when they are loaded
            hint = (
                "; it holds more than that: load it where you trust it, and save its state_dict "
                "alone by torch.save or safetensors"
            )
        raise DamagedError(
            f"--init {path} cannot be loaded as plain tensors ({type(error).__name__}){hint}"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise DamagedError(f"--init {path}: no state dict of a network in it")
    return {
        name.removeprefix("module.").removeprefix("_orig_mod."): value  # DDP's, torch.compile's
        for name, value in content.items()
    }


def _content(path: Path) -> Any:
    """Of a file of torch's, or of safetensors, whatever it is called."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # after the length of a header in JSON; torch's begin with PK or a pickle
        return load(path.read_bytes())
    return torch.load(path, map_location="cpu", weights_only=True)


def _converted_by_timm(
    path: Path, found: dict[str, Tensor], network: nn.Module
) -> dict[str, Tensor]:
    """As timm itself does when it loads weights into this network, if it is one of timm's."""
    module = sys.modules[type(network).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if not module.__name__.startswith("timm.") or convert is None:
        return found
    try:
        return dict(convert(found, network))
    except Exception as error:  # of a file of another network
        raise ConfigError(
            f"--init {path} does not fit this recipe's network: {type(error).__name__}: {error}"
        ) from error


def _ends(network: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the first convolutions and of the last linear layers: what timm says of its own
    networks, else the first and the last one that there is.
    """
    said = getattr(network, "pretrained_cfg", None)
    said = said if isinstance(said, dict) else {}
    modules = dict(network.named_modules())
    stems = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    heads = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    return _names(said.get("first_conv")) or stems[:1], _names(said.get("classifier")) or heads[-1:]


def _names(said: object) -> list[str]:
    """One name, several, or none."""
    return [said] if isinstance(said, str) else [*said] if isinstance(said, list | tuple) else []


def _check(path: Path, found: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    lacking = [name for name in own if name not in found]
    foreign = [name for name in found if name not in own]
    others = [
        f"{name} {_shapes(found[name], own[name])}"
        for name in own
        if name in found and found[name].shape != own[name].shape
    ]
    wrong = [("lacks", lacking), ("has besides", foreign), ("has in another shape", others)]
    if said := [f"{how} {', '.join(names[:_SHOWN])}" for how, names in wrong if names]:
        raise ConfigError(
            f"--init {path} does not fit this recipe's network: it {'; it '.join(said)}"
        )


def _shapes(there: Tensor | None, here: Tensor) -> str:
    was = "absent" if there is None else "×".join(map(str, there.shape))
    return f"{was} there, {'×'.join(map(str, here.shape))} here"
