"""A small network that trains in minutes: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"
(arXiv 2404.00498).

A whitening stem, three blocks of two 3×3 convolutions, a linear layer of small logits. At 32 px and
full width (64, 256, 256 channels) 236 MFLOP an image; `width` is the first block's, the others have
four times as many. A side of 32 px runs 31 → 15 → 7 → 3 → 1 in the stem, the three blocks' pools
and the head's.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models import checks

_BLOCKS, _WIDER = 3, 4
_SCALE = 1 / 9  # of the logits
_BN_MOMENTUM, _BN_EPS = 0.4, 1e-12  # torch's momentum: the share of the new batch


def build(*, classes: int, channels: int, size: int, width: int = 64, pools: int = -1) -> nn.Module:
    """`pools`: how many of the blocks, the last ones, halve the side; -1: as many as leave a pixel,
    three from 9 px on. With one less than three a network for 16 px costs what one for 32 px does.
    """
    checks.smallest(size, 2)
    checks.positive(width=width)
    most = min(_BLOCKS, int(math.log2(size - 1)))
    said = f"model_args.pools = {pools}: from 0 to {most} for {size} px, or -1 for {most}"
    checks.require(-1 <= pools <= most, said)
    return Air(channels, classes, width, most if pools < 0 else pools)


class Air(nn.Module):
    """Stem, blocks and head; the first weights of convolutions pass on what comes in (Dirac)."""

    def __init__(self, channels: int, classes: int, width: int, pools: int) -> None:
        super().__init__()
        self.stem = WhiteningStem(channels)
        widths = [self.stem.outputs, width, *[_WIDER * width] * (_BLOCKS - 1)]
        self.blocks = nn.Sequential(
            *(
                Block(widths[at], widths[at + 1], pool=at >= _BLOCKS - pools)
                for at in range(_BLOCKS)
            )
        )
        self.head = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, size, size) → (B, classes)."""
        x = self.blocks(F.gelu(self.stem(x)))
        return cast(Tensor, self.head(x.amax(dim=(2, 3)))) * _SCALE


class WhiteningStem(nn.Module):
    """A 2×2 convolution without padding whose outputs, over the training images, are uncorrelated
    and of unit variance: eigenvectors of the covariance of 2×2 patches over the roots of their
    eigenvalues, each with both signs. Its kernels are fitted to the data and never learnt.
    """

    weight: Tensor

    def __init__(self, channels: int, eps: float = 5e-4) -> None:
        super().__init__()
        self.inputs, self.outputs, self._eps = channels, 8 * channels, eps
        self.register_buffer("weight", torch.zeros(self.outputs, channels, 2, 2))
        self.bias = nn.Parameter(torch.zeros(self.outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) → (B, 8·channels, h − 1, w − 1)."""
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take the kernels from normalised training images (n, channels, h, w)."""
        patches = F.unfold(images.float(), 2).transpose(1, 2).flatten(0, 1)
        covariance = (patches.T @ patches).double().cpu() / len(patches)
        values, vectors = torch.linalg.eigh(covariance)  # rising; columns are eigenvectors
        kernels = (vectors / (values.clamp(min=0) + self._eps).sqrt()).T.flip(0)
        both = torch.cat([kernels, -kernels]).view(self.weight.shape)
        self.weight.copy_(both.to(self.weight))


class Block(nn.Module):
    """gelu(bn(conv(gelu(bn(pool(conv(x))))))), batch norm without scales."""

    def __init__(self, inputs: int, outputs: int, *, pool: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs), _norm(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), _norm(outputs)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h, w), or ⌊h/2⌋ and ⌊w/2⌋ with a pool."""
        x = F.gelu(self.norm1(self.pool(self.conv1(x))))
        return F.gelu(self.norm2(self.conv2(x)))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    found = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(found.weight[:inputs])
    return found


def _norm(channels: int) -> nn.BatchNorm2d:
    found = nn.BatchNorm2d(channels, eps=_BN_EPS, momentum=_BN_MOMENTUM)
    found.weight.requires_grad = False
    return found
