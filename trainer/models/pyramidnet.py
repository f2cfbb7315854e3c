"""PyramidNets (Han et al., "Deep Pyramidal Residual Networks"): every block a little wider.

`pyramidnet-110-84`: 110 layers, 84 channels more after the last block than after the stem, in
equal steps, rounded (3,904,446 parameters). Blocks BN-conv-BN-ReLU-conv-BN; shortcuts average
2×2 px where the map is halved and pad channels with zeros. CIFAR-type: 3×3 stem of 16 channels,
three stages, depth 6n+2, or 9n+2 of bottlenecks, ×4. ImageNet-type: four stages after the 7×7
stem of 64 channels, up to 64 px after the small one; 62,368,168 parameters of 200-300, where
the paper says 62.1 million (widths rounded down would give 62,152,030).
"""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models import checks
from trainer.models.blocks import bn_relu, conv, fan_out, head, places, stem
from trainer.models.preact import PreactBlock, Unit
from trainer.models.resnet import BLOCKS

_IMAGENET = {**BLOCKS, 200: (3, 24, 36, 3)}
_STEM = {3: 16, 4: 64}  # channels, by the number of stages


class PaddedShortcut(nn.Module):
    """Averages of 2×2 px where the map is halved, then channels of zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        # an odd side is halved upwards, as by the convolution beside it
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h/stride, w/stride)."""
        return F.pad(cast(Tensor, self.pool(x)), (0, 0, 0, 0, 0, self.extra))


def build(
    depth: int,
    alpha: int,
    *,
    classes: int,
    channels: int,
    size: int,
    bottleneck: bool = False,
) -> nn.Module:
    """`alpha` channels are added over the whole depth."""
    count = checks.blocks_per_stage(depth, 9 if bottleneck else 6, 2)
    checks.smallest(size, 4)
    # BN without ReLU after the stem
    first = [conv(channels, _STEM[3], 3), nn.BatchNorm2d(_STEM[3])]
    return _network(first, [count] * 3, alpha, classes, bottleneck)


def build_imagenet(depth: int, alpha: int, *, classes: int, channels: int, size: int) -> nn.Module:
    """The same of four stages; bottlenecks from depth 50."""
    checks.one_of(depth, tuple(_IMAGENET))
    checks.smallest(size, 8)
    first = stem(channels, _STEM[4], size)
    return _network(first, _IMAGENET[depth], alpha, classes, depth >= 50)


def _network(
    first: list[nn.Module], counts: Sequence[int], alpha: int, classes: int, bottleneck: bool
) -> nn.Module:
    unit = Unit(bottleneck=bottleneck, first_relu=False, last_bn=True)
    inputs, total = _STEM[len(counts)], sum(counts)
    widths = [round(inputs + alpha * (i + 1) / total) * unit.expansion for i in range(total)]
    # of the places only where the map is halved is used: here no two blocks are as wide
    strides = [place.stride for place in places(inputs, [0] * len(counts), counts)]
    blocks = []
    for outputs, stride in zip(widths, strides, strict=True):
        shortcut = PaddedShortcut(inputs, outputs, stride)
        blocks.append(PreactBlock(inputs, outputs, stride, unit, shortcut=shortcut))
        inputs = outputs
    network = nn.Sequential(*first, *blocks, *bn_relu(inputs), *head(inputs, classes))
    fan_out(network)
    return network
