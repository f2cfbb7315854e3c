"""Turns the integers of a plane into what a network sees, as one affine map on the device."""

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.format.manifest import Manifest


class Normaliser(nn.Module):
    """Dequantise, undo the colour rotation, subtract the mean, divide by the deviation: of plane
    `k`, or of each plane of a group.

    All of it is affine: x = A·q + b with A = diag(1/std)·Rᵀ·step and
    b = (Rᵀ·offset − mean) / std. Always in float32, whatever autocast says: in bfloat16 a value
    may be wrong by a tenth of a deviation.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, manifest: Manifest, k: int | tuple[int, ...]) -> None:
        super().__init__()
        planes = [_affine(manifest, each) for each in ((k,) if isinstance(k, int) else k)]
        matrices = np.stack([matrix for matrix, _ in planes])
        shifts = np.stack([shift for _, shift in planes])[:, :, None]
        self.register_buffer("weight", torch.tensor(matrices, dtype=torch.float32))
        self.register_buffer("bias", torch.tensor(shifts, dtype=torch.float32))

    @property
    def planes(self) -> int:
        """In a group; else 1."""
        return len(self.weight)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, h, w) centred integers, of any dtype, of a group (B, g·C, h, w) or (B, g, C, h,
        w) → (B, C, h, w) or (B, g·C, h, w) float32, about zero mean and unit variance.
        """
        batch, (height, width) = (
            values.shape[0],
            values.shape[-2:],
        )  # len() would be fixed in exports
        planes, channels, _ = self.weight.shape
        with torch.autocast(values.device.type, enabled=False):
            pixels = values.float().reshape(batch * planes, channels, height * width)
            # On a CPU a 1×1 convolution of three channels takes 25 times as long; on a GPU it
            # would round to TF32.
            found = torch.baddbmm(
                self.bias.repeat(batch, 1, 1), self.weight.repeat(batch, 1, 1), pixels
            )
        return found.view(batch, planes * channels, height, width)


def _affine(manifest: Manifest, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(A, b) of plane `k`: (C, C) and (C,) float64."""
    plane = manifest.planes[k]
    rotation = np.array(manifest.colour).T
    # a channel that is the same everywhere carries nothing: leave its scale alone
    std = np.maximum(np.array(plane.std), 1e-3)
    offset = np.array(plane.offset) if manifest.preparation.splits > 1 else 128.0
    shift = rotation @ np.broadcast_to(offset, len(std)) - np.array(plane.mean)
    return rotation * plane.step / std[:, None], shift / std
