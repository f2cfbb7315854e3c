"""What the families share: convolutions, residual blocks, stems, heads, first weights.

Maps are (B, channels, h, w). A stride of 2 makes a side of n into ⌈n/2⌉, shortcuts likewise.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn

SMALL_INPUT = 64  # px; up to this side an ImageNet-type network gets the small stem


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the side, or halves it with stride 2."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """He et al.'s shortcut: the identity, or a 1×1 convolution with BN where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """relu(x' + bn(conv(relu(bn(conv(x)))))), x' = x or its projection; 3×3 convolutions. `drop`
    may leave out the branch of some images.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.drop: nn.Module = nn.Identity()
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h/stride, w/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return cast(Tensor, self.relu(self.drop(y) + self.downsample(x)))


class Bottleneck(nn.Module):
    """The same of three convolutions, 1×1 to `inner` channels, 3×3 in `groups`, 1×1 back."""

    expansion = 4  # the usual channels of a stage over the inner ones of its first

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, inner: int, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = conv(inputs, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.drop: nn.Module = nn.Identity()
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h/stride, w/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return cast(Tensor, self.relu(self.drop(y) + self.downsample(x)))


class Place(NamedTuple):
    """Where in a network a block stands."""

    inputs: int
    outputs: int
    stride: int
    stage: int
    first: bool  # of its stage


def places(inputs: int, outputs: Sequence[int], counts: Sequence[int]) -> Iterator[Place]:
    """Every block of the stages in order; the first of each stage but the first halves the map."""
    for stage, (wide, count) in enumerate(zip(outputs, counts, strict=True)):
        for index in range(count):
            yield Place(inputs, wide, 2 if stage and not index else 1, stage, index == 0)
            inputs = wide


def stem(channels: int, width: int, size: int) -> list[nn.Module]:
    """An ImageNet-type network's first layers, convolution to pool, for inputs of `size` px."""
    small = size <= SMALL_INPUT
    layers: list[nn.Module] = [
        conv(channels, width, 3) if small else conv(channels, width, 7, 2),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    return layers if small else [*layers, nn.MaxPool2d(3, 2, 1)]


def bn_relu(channels: int) -> list[nn.Module]:
    """What comes before a convolution where activation is pre-activation."""
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def pool_to(most: int, side: int) -> nn.Module:
    """What leaves at most `most`² of a map of `side`² pixels in front of linear layers. A pool that
    would do nothing is not there: on a GPU its gradients are not the same bits each time.
    """
    return nn.Identity() if side <= most else nn.AdaptiveAvgPool2d(most)


def head(inputs: int, classes: int) -> list[nn.Module]:
    """Global average pool and a linear layer: (B, inputs, h, w) → (B, classes)."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]


def fan_out(
    network: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
) -> None:
    """Source 002's first weights: normal, variance 2/fan-out (He et al. 2015); no bias."""
    for module in network.modules():
        if isinstance(module, kinds) and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
