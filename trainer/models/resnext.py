"""ResNeXt for small images (Xie et al., "Aggregated Residual Transformations", section 5.4).

`resnext29-8x64d`: 29 layers, 3×3 convolutions in 8 groups of 64 channels, doubled from stage to
stage; 34,426,698 parameters. 3×3 stem of 64 channels, three stages of n bottlenecks to 256, 512
and 1024 channels, depth 9n+2. Those for ImageNet are torchvision's, in resnet_imagenet.py.
"""

from torch import nn

from trainer.models import checks
from trainer.models.blocks import Bottleneck, conv, fan_out, head, places

_STEM, _OUTPUTS = 64, (256, 512, 1024)


def build(
    depth: int, cardinality: int, base: int, *, classes: int, channels: int, size: int
) -> nn.Module:
    """(B, channels, size, size) → (B, classes)."""
    count = checks.blocks_per_stage(depth, 9, 2)
    checks.require(cardinality >= 1 and base >= 1, "cardinality and width are at least 1")
    checks.smallest(size, 4)
    blocks = [
        Bottleneck(
            place.inputs,
            place.outputs,
            place.stride,
            inner=cardinality * base * 2**place.stage,
            groups=cardinality,
        )
        for place in places(_STEM, _OUTPUTS, [count] * 3)
    ]
    network = nn.Sequential(
        conv(channels, _STEM, 3),
        nn.BatchNorm2d(_STEM),
        nn.ReLU(inplace=True),
        *blocks,
        *head(_OUTPUTS[-1], classes),
    )
    fan_out(network)
    return network
