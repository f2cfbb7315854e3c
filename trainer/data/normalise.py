"""Integers of a plane in, normalised RGB out: one 1×1 convolution on the device."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.format.manifest import Manifest


class Normaliser:
    """Dequantise, undo the colour rotation, subtract the mean, divide by the deviation.

    All of it is affine: x = A·q + b with A = diag(1/std)·Rᵀ·step and
    b = (Rᵀ·offset − mean) / std. q: (B, C, h, w) centred integers as floats.
    """

    def __init__(self, manifest: Manifest, k: int, device: torch.device) -> None:
        plane = manifest.planes[k]
        rotation = np.array(manifest.colour).T
        # a channel that is the same everywhere carries nothing: leave its scale alone
        std = np.maximum(np.array(plane.std), 1e-3)
        offset = np.array(plane.offset) if manifest.preparation.splits > 1 else 128.0
        shift = rotation @ np.broadcast_to(offset, len(std)) - np.array(plane.mean)
        matrix = rotation * plane.step / std[:, None]
        self._weight = torch.tensor(matrix, dtype=torch.float32, device=device)[:, :, None, None]
        self._bias = torch.tensor(shift / std, dtype=torch.float32, device=device)

    def __call__(self, values: Tensor) -> Tensor:
        """(B, C, h, w) float → (B, C, h, w) float, about zero mean and unit variance."""
        return F.conv2d(values, self._weight, self._bias)
