"""ResNets for small images, depth 6n+2 (He et al., "Deep Residual Learning", section 4.2).

3×3 stride-1 stem, three stages of n basic blocks, global average pool. Shortcuts that
change shape are 1×1 convolutions with batch norm; 272,474 parameters for depth 20.
"""

from typing import cast

from torch import Tensor, nn

from pipeline.errors import ConfigError


class BasicBlock(nn.Module):
    """relu(x' + bn(conv(relu(bn(conv(x)))))), x' = x or its projection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h/stride, w/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return cast(Tensor, self.relu(y + self.shortcut(x)))


def build(depth: int, *, classes: int, channels: int, size: int, width: int = 16) -> nn.Module:
    """`width`: channels of the first stage, doubled in each of the next two."""
    if depth < 8 or (depth - 2) % 6:
        raise ConfigError(f"cifar-resnet{depth}: the depth is 6n+2, such as 8, 20, 32, 44, 56, 110")
    if width < 1:
        raise ConfigError(f"cifar-resnet{depth}: model_args.width = {width}: at least 1")
    if size < 4:
        raise ConfigError(f"cifar-resnet{depth} needs inputs of at least 4 px, these are {size}")
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    inputs = width
    for stage in range(3):
        outputs = width * 2**stage
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(BasicBlock(inputs, outputs, stride))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
