"""DenseNets (Huang et al., "Densely Connected Convolutional Networks").

`densenet-100-12`: depth 3n+4, growth 12, 16 channels in the stem. `densenet-bc-100-12`: depth
6n+4 of bottlenecks, transitions that halve the channels, twice the growth in the stem; 769,162
parameters. Both have three blocks after a 3×3 stem. `densenet121`, … are torchvision's with four,
up to 64 px with the small stem; there no max-pool either.
"""

from typing import cast

import torch
from torch import Tensor, nn

from trainer.models import checks
from trainer.models.blocks import SMALL_INPUT, bn_relu, conv, fan_out, head

_INNER = 4  # channels of a bottleneck's 1×1 convolution over the growth
# growth, channels of the stem, layers a block
_IMAGENET = {
    121: (32, 64, (6, 12, 24, 16)),
    161: (48, 96, (6, 12, 36, 24)),
    169: (32, 64, (6, 12, 32, 32)),
    201: (32, 64, (6, 12, 48, 32)),
}


class DenseLayer(nn.Module):
    """x with `growth` channels after it that are made from all of x."""

    def __init__(self, inputs: int, growth: int, dropout: float, bottleneck: bool) -> None:
        super().__init__()
        drop: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
        layers: list[nn.Module] = []
        if bottleneck:
            layers = [*bn_relu(inputs), conv(inputs, _INNER * growth, 1), *drop]
            inputs = _INNER * growth
        self.branch = nn.Sequential(*layers, *bn_relu(inputs), conv(inputs, growth, 3), *drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, inputs + growth, h, w)."""
        return torch.cat([x, self.branch(x)], dim=1)


def build(
    depth: int, growth: int, *, classes: int, channels: int, size: int, dropout: float = 0.0
) -> nn.Module:
    """`dropout`: after each convolution but the first, the paper's is 0.2 without augmentation."""
    count = checks.blocks_per_stage(depth, 3, 4)
    return _cifar(16, count, growth, classes, channels, size, dropout, bottleneck=False)


def build_bc(
    depth: int, growth: int, *, classes: int, channels: int, size: int, dropout: float = 0.0
) -> nn.Module:
    """The same with bottlenecks and compression."""
    count = checks.blocks_per_stage(depth, 6, 4)
    return _cifar(2 * growth, count, growth, classes, channels, size, dropout, bottleneck=True)


def build_imagenet(
    depth: int, *, classes: int, channels: int, size: int, dropout: float = 0.0
) -> nn.Module:
    """torchvision's, which halves the map three times after the stem."""
    import torchvision  # takes seconds

    checks.one_of(depth, tuple(_IMAGENET))
    checks.share(dropout=dropout)
    checks.smallest(size, 8)
    growth, width, counts = _IMAGENET[depth]
    network = torchvision.models.DenseNet(
        growth, counts, width, drop_rate=dropout, num_classes=classes
    )
    if size <= SMALL_INPUT:
        network.features.conv0 = conv(channels, width, 3)
        network.features.pool0 = nn.Identity()
    else:
        network.features.conv0 = conv(channels, width, 7, 2)
    fan_out(network)
    return cast(nn.Module, network)


def _cifar(
    width: int,
    count: int,
    growth: int,
    classes: int,
    channels: int,
    size: int,
    dropout: float,
    bottleneck: bool,
) -> nn.Module:
    """`width`: channels of the stem."""
    checks.require(growth >= 1, "the growth is at least 1")
    checks.share(dropout=dropout)
    checks.smallest(size, 4)
    layers: list[nn.Module] = [conv(channels, width, 3)]
    for stage in range(3):
        if stage:
            outputs = width // 2 if bottleneck else width
            layers += [*bn_relu(width), conv(width, outputs, 1), nn.AvgPool2d(2)]
            width = outputs
        for _ in range(count):
            layers.append(DenseLayer(width, growth, dropout, bottleneck))
            width += growth
    network = nn.Sequential(*layers, *bn_relu(width), *head(width, classes))
    fan_out(network)
    return network
