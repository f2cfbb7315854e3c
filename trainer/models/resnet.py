"""ResNets and ResNeXts: for small images, for ImageNet, and source 003's, whose ends begin as zero.

He et al., "Deep Residual Learning"; Xie et al., "Aggregated Residual Transformations". Parts have
torchvision's names, so that published weights load.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from trainer.models import checks
from trainer.models.blocks import SMALL_INPUT, BasicBlock, Bottleneck, Place, conv, fan_out, places

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
DEPTHS = tuple(BLOCKS)


class ResNet(nn.Module):
    """Stem of `width` channels, stages of blocks, global average pool, linear layer. The stem is a
    3×3 convolution, or above 64 px, where `large` says so, 7×7 of stride 2 and a pool.
    """

    def __init__(
        self, channels: int, width: int, large: bool, blocks: Sequence[list[nn.Module]],
        outputs: int, classes: int, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = conv(channels, width, 7, 2) if large else conv(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.stages = [f"layer{stage + 1}" for stage in range(len(blocks))]
        for name, stage in zip(self.stages, blocks, strict=True):
            self.add_module(name, nn.Sequential(*stage))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(outputs, classes, bias=bias)
        fan_out(self, (nn.Conv2d,))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, size, size) → (B, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def build_cifar(
    depth: int, *, classes: int, channels: int, size: int, width: int = 16,
    bottleneck: bool = False,
) -> nn.Module:  # fmt: skip
    """Three stages after a 3×3 stem, depth 6n+2, or 9n+2 of bottlenecks; 272,474 parameters for 20.

    `width`: channels of the first stage's 3×3 convolutions, doubled in each of the next two. A
    bottleneck's stage is 4 times as wide, the first one too, as in the paper's networks; the code
    behind source 002 leaves that at 16 (4 inside).
    """
    count = checks.blocks_per_stage(depth, 9 if bottleneck else 6, 2)
    checks.positive(width=width)
    checks.smallest(size, 4)
    outputs = _doubled(width, 3, bottleneck)
    stages = _stages(width, outputs, [count] * 3, _residual(bottleneck))
    return ResNet(channels, width, False, stages, outputs[-1], classes)


def build_cifar_resnext(
    depth: int, cardinality: int, base: int, *, classes: int, channels: int, size: int
) -> nn.Module:
    """`resnext29-8x64d`: the same of bottlenecks of `cardinality` groups of `base` channels,
    doubled from stage to stage; 34,426,698 parameters.
    """
    count = checks.blocks_per_stage(depth, 9, 2)
    _check_groups(cardinality, base)
    checks.smallest(size, 4)
    outputs = _doubled(64, 3, bottleneck=True)
    stages = _stages(64, outputs, [count] * 3, _grouped(cardinality, base))
    network = ResNet(channels, 64, False, stages, outputs[-1], classes)
    fan_out(network)
    return network


def build(
    depth: int, *, classes: int, channels: int, size: int, width: int = 64,
    stochastic_depth: float = 0.0,
) -> nn.Module:  # fmt: skip
    """As torchvision's. Up to 64 px the 7×7 stem and the pool, which shrink a map by 4, give way to
    the 3×3 stem, as in the published Spectral ImageNet code.

    `width`: channels of the first stage's 3×3 convolutions, doubled in each of the next three.
    `stochastic_depth`: the share of images without the last block's branch (Huang et al.); it
    grows linearly from the first block on, where it is none.
    """
    checks.one_of(depth, DEPTHS)
    checks.positive(width=width)
    checks.share(stochastic_depth=stochastic_depth)
    checks.smallest(size, 8)
    outputs = _doubled(width, 4, depth >= 50)
    stages = _stages(width, outputs, BLOCKS[depth], _residual(depth >= 50))
    if stochastic_depth:
        _drop([block for stage in stages for block in stage], stochastic_depth)
    return ResNet(channels, width, size > SMALL_INPUT, stages, outputs[-1], classes)


def build_resnext(
    depth: int, cardinality: int, base: int, *, classes: int, channels: int, size: int
) -> nn.Module:
    """As torchvision's, of `cardinality` groups, `base` channels wide in the first stage."""
    checks.one_of(depth, tuple(d for d in DEPTHS if d >= 50))
    _check_groups(cardinality, base)
    checks.smallest(size, 8)
    outputs = _doubled(64, 4, bottleneck=True)
    stages = _stages(64, outputs, BLOCKS[depth], _grouped(cardinality, base))
    network = ResNet(channels, 64, size > SMALL_INPUT, stages, outputs[-1], classes)
    fan_out(network)
    return network


def build_zero(depth: int, factor: int, *, classes: int, channels: int, size: int) -> nn.Module:
    """Source 003's "R20×4". Depths 20, 32, 44, … have three stages, 16 channels wide in the first;
    18, 34, 50, 101, 152 four, 64 wide; all × the factor but the stem, as its stated sizes tell.
    The last BN's γ of a block begins as 0 (Goyal et al., "Accurate, Large Minibatch SGD"), so do
    the weights of the head, which has no bias: all logits are 0 at first. 272,464 parameters of
    R20×1 for 10 classes, 11,173,952 of R18×1.
    """
    checks.require(factor >= 1, "the width factor is at least 1")
    four = ", ".join(map(str, DEPTHS))
    known = depth in DEPTHS or (depth >= 8 and depth % 6 == 2)
    checks.require(known, f"the depth is 6n+2, such as 20, 32, 44, 56, or one of {four}")
    counts = BLOCKS.get(depth, ((depth - 2) // 6,) * 3)
    checks.smallest(size, 8 if len(counts) == 4 else 4)
    width = 64 if len(counts) == 4 else 16
    bottleneck = len(counts) == 4 and depth >= 50
    outputs = _doubled(width * factor, len(counts), bottleneck)
    stages = _stages(width, outputs, counts, _residual(bottleneck))
    large = size > SMALL_INPUT
    network = ResNet(channels, width, large, stages, outputs[-1], classes, bias=False)
    nn.init.zeros_(network.fc.weight)
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)
    return network


def _doubled(width: int, stages: int, bottleneck: bool) -> list[int]:
    """Channels that leave each stage."""
    return [
        width * 2**stage * (Bottleneck.expansion if bottleneck else 1) for stage in range(stages)
    ]


def _stages(
    inputs: int, outputs: list[int], counts: Sequence[int], block: Callable[[Place], nn.Module]
) -> list[list[nn.Module]]:
    found: list[list[nn.Module]] = [[] for _ in outputs]
    for place in places(inputs, outputs, counts):
        found[place.stage].append(block(place))
    return found


def _residual(bottleneck: bool) -> Callable[[Place], nn.Module]:
    def block(place: Place) -> nn.Module:
        if bottleneck:
            inner = place.outputs // Bottleneck.expansion
            return Bottleneck(place.inputs, place.outputs, place.stride, inner=inner)
        return BasicBlock(place.inputs, place.outputs, place.stride)

    return block


def _grouped(cardinality: int, base: int) -> Callable[[Place], nn.Module]:
    def block(place: Place) -> nn.Module:
        inner = cardinality * base * 2**place.stage
        sides = (place.inputs, place.outputs, place.stride)
        return Bottleneck(*sides, inner=inner, groups=cardinality)

    return block


def _check_groups(cardinality: int, base: int) -> None:
    checks.require(cardinality >= 1 and base >= 1, "cardinality and width are at least 1")


def _drop(blocks: list[nn.Module], most: float) -> None:
    from torchvision.ops import StochasticDepth  # which takes seconds to import

    for index, block in enumerate(blocks):
        block.drop = StochasticDepth(most * index / (len(blocks) - 1), "row")
