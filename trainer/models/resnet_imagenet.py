"""torchvision's ResNet-18 to -152 and ResNeXt, with the small-input stem up to 64 px.

Up to 64 px the 7×7 stride-2 stem and the max-pool, which together shrink a map by 4,
give way to one 3×3 stride-1 convolution, as the published Spectral ImageNet code does.
He et al., "Deep Residual Learning"; Xie et al., "Aggregated Residual Transformations".
"""

from collections.abc import Sequence
from typing import Any, cast

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth

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


class DroppedBasicBlock(BasicBlock):  # type: ignore[misc]
    """torchvision's, whose branch is left out for some images in training."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h/stride, w/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return _joined(self, y, x)


class DroppedBottleneck(Bottleneck):  # type: ignore[misc]
    """torchvision's, whose branch is left out for some images in training."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h/stride, w/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return _joined(self, y, x)


def build(
    depth: int,
    *,
    classes: int,
    channels: int,
    size: int,
    width: int = _WIDTH,
    stochastic_depth: float = 0.0,
) -> nn.Module:
    """Global average pool, so any size of at least 8 px works.

    `width`: channels of the first stage's 3×3 convolutions, doubled in each of the next three.
    `stochastic_depth`: the share of images without the last block's branch (Huang et al.); it
    grows linearly from the first block on, where it is none.
    """
    checks.one_of(depth, DEPTHS)
    checks.positive(width=width)
    checks.share(stochastic_depth=stochastic_depth)
    checks.smallest(size, 8)
    plain = (BasicBlock, DroppedBasicBlock) if depth < 50 else (Bottleneck, DroppedBottleneck)
    block = plain[stochastic_depth > 0]
    network = torchvision.models.ResNet(block, BLOCKS[depth], num_classes=classes)
    if width != _WIDTH:
        _widen(network, block, BLOCKS[depth], width)
    if stochastic_depth:
        _drop(network, block, stochastic_depth)
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


def _drop(network: nn.Module, block: type[nn.Module], most: float) -> None:
    blocks = [module for module in network.modules() if isinstance(module, block)]
    for index, module in enumerate(blocks):
        module.drop = StochasticDepth(most * index / (len(blocks) - 1), "row")


def _joined(block: Any, branch: Tensor, x: Tensor) -> Tensor:
    identity = x if block.downsample is None else block.downsample(x)
    return cast(Tensor, block.relu(block.drop(branch) + identity))


def _widen(
    network: torchvision.models.ResNet, block: type[nn.Module], counts: Sequence[int], width: int
) -> None:
    """All stages made anew from torchvision's blocks; it has no argument for their width."""
    network.bn1 = nn.BatchNorm2d(width)
    network.inplanes = width
    for stage, count in enumerate(counts):
        layer = network._make_layer(block, width * 2**stage, count, stride=2 if stage else 1)
        fan_out(layer)
        setattr(network, f"layer{stage + 1}", layer)
    network.fc = nn.Linear(network.inplanes, network.fc.out_features)
