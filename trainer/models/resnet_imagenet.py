"""torchvision's ResNet-18, -34 and -50, with the small-input stem up to 64 px.

Up to 64 px the 7×7 stride-2 stem and the max-pool, which together shrink a map by 4,
give way to one 3×3 stride-1 convolution, as the published Spectral ImageNet code does.
"""

from typing import cast

import torchvision
from torch import nn

from pipeline.errors import ConfigError

SMALL_INPUT = 64  # px; up to this side the small stem is used
_DEPTHS = (18, 34, 50)


def build(depth: int, *, classes: int, channels: int, size: int) -> nn.Module:
    """Global average pool, so any size of at least 8 px works."""
    if depth not in _DEPTHS:
        known = ", ".join(f"resnet{d}" for d in _DEPTHS)
        raise ConfigError(f"no network resnet{depth}; known are {known}")
    if size < 8:
        raise ConfigError(f"resnet{depth} needs inputs of at least 8 px, these are {size}")
    network = cast(
        torchvision.models.ResNet,
        torchvision.models.get_model(f"resnet{depth}", num_classes=classes),
    )
    if size <= SMALL_INPUT:
        network.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return cast(nn.Module, network)
