"""The split of `spectral prepare` as a torch module that other programs can run: bit for bit.

Only operations that ONNX and torch.export have, in whole numbers up to the quantiser: a float
convolution would differ in one of 25,000 values.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import transforms
from pipeline.planes.kernels.analyse import FRACTION_BITS, ROUNDING
from pipeline.preparation import Preparation

_MOST = 127  # in size, of a quantised value


class Split(nn.Module):
    """uint8 images (B, H, W, C), already resized → planes (B, N, C, h, w), whole numbers in
    float32: those that `image_to_values` gives.
    """

    split_matrix: Tensor
    split_scale: Tensor

    def __init__(self, prep: Preparation) -> None:
        super().__init__()
        self.splits, self.p, self.block = prep.splits, prep.p, prep.layout == "block"
        self.channels, self.side = prep.channels, image_side(prep)
        if self.splits > 1:
            # Sums and differences of phases, which the kernels take, leave equal whole numbers.
            matrix = np.rint(transforms.matrix(prep.p, prep.transform) * 2.0**FRACTION_BITS)
            self.register_buffer("split_matrix", torch.from_numpy(matrix))
            self.register_buffer("split_scale", torch.from_numpy(_scale(prep))[:, :, None])

    def forward(self, images: Tensor) -> Tensor:
        """Phases by reshape and permute, one product in float64, which is exact, the quantiser."""
        if self.splits == 1:
            return images.permute(0, 3, 1, 2)[:, None].float() - 128
        n, c, h = self.splits, self.channels, self.side // self.p
        # Exact in float64: sums are below 2^31. Not int32, of which GPUs have no product.
        values = self._phases(self._coloured(images.int())).double()
        found = torch.matmul(self.split_matrix, values.reshape(-1, n, c * h * h))
        scaled = found.float().reshape(-1, n, c, h * h) * self.split_scale
        # As trunc(v + copysign(0.4, v)), which neither exporter has.
        whole = torch.sign(scaled) * torch.floor(torch.abs(scaled) + float(ROUNDING))
        return torch.clamp(whole, -_MOST, _MOST).reshape(-1, n, c, h, h)

    def _coloured(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, C, H, W), doubled and centred on mid grey, rotated in colour."""
        if self.channels == 1:
            return (2 * x - 255).permute(0, 3, 1, 2)
        red, green, blue = x[..., 0], x[..., 1], x[..., 2]
        grey = 2 * (red + green + blue) - 765
        return torch.stack([grey, 2 * (red - blue), 2 * (red - 2 * green + blue)], dim=1)

    def _phases(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, p, p, C, h, w)."""
        c, p, h = self.channels, self.p, self.side // self.p
        if self.block:
            return x.reshape(-1, c, p, h, p, h).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(-1, c, h, p, h, p).permute(0, 3, 5, 1, 2, 4)


def image_side(prep: Preparation) -> int:
    """Of the square image that networks see or that is split, in px."""
    return prep.size if prep.splits > 1 else prep.input_shape[1]


def _scale(prep: Preparation) -> NDArray[np.float32]:
    """Fixed point to quantiser steps, (N, channels): values are doubled, and not of norm 1."""
    norm = transforms.COLOUR_NORM if prep.channels == 3 else np.ones(1)
    steps = transforms.steps(prep.p, prep.transform, prep.step)
    scale: NDArray[np.float32] = (1.0 / (2.0 * 2.0**FRACTION_BITS * np.outer(steps, norm))).astype(
        np.float32
    )
    return scale
