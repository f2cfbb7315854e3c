"""ResNets for small images (He et al., "Deep Residual Learning", section 4.2).

3×3 stride-1 stem, three stages of n blocks, global average pool: depth 6n+2, or 9n+2 of
bottlenecks. Shortcuts that change shape are 1×1 convolutions with batch norm; 272,474
parameters for depth 20. The head has torch's own first weights, convolutions source 002's.

A bottleneck's stage is 4 times as wide as its 3×3 convolutions, the first one too, as in the
paper's networks. The code behind source 002 leaves that first stage at 16 (4 inside).
"""

from collections.abc import Sequence

from torch import nn

from trainer.models import checks
from trainer.models.blocks import BasicBlock, Bottleneck, Place, conv, fan_out, head, places


def build(
    depth: int,
    *,
    classes: int,
    channels: int,
    size: int,
    width: int = 16,
    bottleneck: bool = False,
) -> nn.Module:
    """`width`: channels of the first stage's 3×3 convolutions, doubled in each of the next two."""
    count = checks.blocks_per_stage(depth, 9 if bottleneck else 6, 2)
    checks.positive(width=width)
    checks.smallest(size, 4)
    layers = [conv(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return stages(layers, width, [count] * 3, width, classes, bottleneck)


def stages(
    first: list[nn.Module],
    inputs: int,
    counts: Sequence[int],
    width: int,
    classes: int,
    bottleneck: bool,
) -> nn.Sequential:
    """All after the `first` layers, which give `inputs` channels."""
    expansion = 4 if bottleneck else 1
    outputs = [width * 2**stage * expansion for stage in range(len(counts))]
    blocks = [_block(place, bottleneck) for place in places(inputs, outputs, counts)]
    network = nn.Sequential(*first, *blocks, *head(outputs[-1], classes))
    fan_out(network, (nn.Conv2d,))
    return network


def _block(place: Place, bottleneck: bool) -> nn.Module:
    inputs, outputs, stride = place.inputs, place.outputs, place.stride
    if bottleneck:
        return Bottleneck(inputs, outputs, stride, inner=outputs // 4)
    return BasicBlock(inputs, outputs, stride)
