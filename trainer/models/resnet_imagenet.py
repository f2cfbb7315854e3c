"""torchvision's ResNet-18 to -152 and ResNeXt, with the small-input stem up to 64 px.

Up to 64 px the 7×7 stride-2 stem and the max-pool, which together shrink a map by 4,
give way to one 3×3 stride-1 convolution, as the published Spectral ImageNet code does.
He et al., "Deep Residual Learning"; Xie et al., "Aggregated Residual Transformations".
"""

from typing import cast

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from trainer.models import checks
from trainer.models.blocks import SMALL_INPUT, fan_out

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
DEPTHS = tuple(BLOCKS)
_WIDTH = 64  # torchvision's


def build(depth: int, *, classes: int, channels: int, size: int, width: int = _WIDTH) -> nn.Module:
    """Global average pool, so any size of at least 8 px works.

    `width`: channels of the first stage's 3×3 convolutions, doubled in each of the next three.
    """
    checks.one_of(depth, DEPTHS)
    checks.positive(width=width)
    checks.smallest(size, 8)
    block = BasicBlock if depth < 50 else Bottleneck
    network = torchvision.models.ResNet(block, BLOCKS[depth], num_classes=classes)
    if width != _WIDTH:
        _widen(network, depth, width)
    return _with_stem(network, channels, size)


def build_resnext(
    depth: int, cardinality: int, base: int, *, classes: int, channels: int, size: int
) -> nn.Module:
    """ResNeXt of `cardinality` groups, `base` channels wide in the first stage."""
    checks.one_of(depth, tuple(d for d in DEPTHS if d >= 50))
    checks.require(cardinality >= 1 and base >= 1, "cardinality and width are at least 1")
    checks.smallest(size, 8)
    network = torchvision.models.ResNet(
        Bottleneck, BLOCKS[depth], num_classes=classes, groups=cardinality, width_per_group=base
    )
    network = _with_stem(network, channels, size)
    fan_out(network)
    return network


def _with_stem(network: torchvision.models.ResNet, channels: int, size: int) -> nn.Module:
    width = network.bn1.num_features
    if size <= SMALL_INPUT:
        network.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return cast(nn.Module, network)


def _widen(network: torchvision.models.ResNet, depth: int, width: int) -> None:
    """All stages made anew from torchvision's blocks; it has no argument for their width."""
    block = BasicBlock if depth < 50 else Bottleneck
    network.bn1 = nn.BatchNorm2d(width)
    network.inplanes = width
    for stage, count in enumerate(BLOCKS[depth]):
        layer = network._make_layer(block, width * 2**stage, count, stride=2 if stage else 1)
        fan_out(layer)
        setattr(network, f"layer{stage + 1}", layer)
    network.fc = nn.Linear(network.inplanes, network.fc.out_features)
