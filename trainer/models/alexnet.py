"""AlexNet, torchvision's (Krizhevsky, "One weird trick"), with a stem that fits the input.

Above 64 px the stem is the usual 11×11 stride 4; up to 64 px a 5×5 stride 2, so that 56 px reach
the last pool with a map of the same 2×2 px as 112 px do, and the first linear layer is sized to
it. Both are our choice. MiB for 1000 classes, beside source 001's, which no published code gives:
224 px 233.08 (224), 112 px 105.08 (61.04), 56 px 105.01 (37.73).
"""

from typing import cast

from torch import nn

from trainer.models import checks
from trainer.models.blocks import SMALL_INPUT, pool_to

_SMALLEST = 29  # px; a stride of 2, then three pools of 3 px at stride 2
_LARGEST_MAP = 6  # px; torchvision's pool in front of the linear layers


def build(*, classes: int, channels: int, size: int, dropout: float = 0.5) -> nn.Module:
    """Five convolutions, three linear layers, with `dropout` before the first two of these."""
    import torchvision  # takes seconds

    checks.smallest(size, _SMALLEST)
    checks.share(dropout=dropout)
    network = torchvision.models.AlexNet(num_classes=classes, dropout=dropout)
    if size <= SMALL_INPUT:
        network.features[0] = nn.Conv2d(channels, 64, 5, 2, 2)
        side = (size + 1) // 2
    else:
        network.features[0] = nn.Conv2d(channels, 64, 11, 4, 2)
        side = (size - 7) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    network.avgpool = pool_to(_LARGEST_MAP, side)
    side = min(side, _LARGEST_MAP)
    network.classifier[1] = nn.Linear(256 * side * side, 4096)
    return cast(nn.Module, network)
