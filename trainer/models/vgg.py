"""VGG (Simonyan & Zisserman, "Very Deep Convolutional Networks"): 16 layers, and 15 for CIFAR.

`vgg16` is torchvision's, plain or with BN. Its five pools leave a map of ⌊size/32⌋ px, at most 7,
and the first linear layer is sized to that: 7 px at 224 (138,357,544 parameters), 3 at 112 (with
BN 54,479,912), 1 at 56 (143.79 MiB; source 001 says 128.05, which no published code gives).
`vgg15` is source 002's: the same convolutions, global average pool, one linear layer.
"""

from typing import cast

import torch
from torch import nn

from trainer.models import checks
from trainer.models.blocks import fan_out, head, pool_to
from trainer.models.meta import on_meta

_SMALLEST = 32  # px; five pools
_LARGEST_MAP = 7  # px; torchvision's pool in front of the linear layers
_HIDDEN = 4096


def build(
    *,
    classes: int,
    channels: int,
    size: int,
    batch_norm: bool = False,
    dropout: float = 0.5,
) -> nn.Module:
    """Sixteen layers, three of them linear, with `dropout` after the first two of these."""
    import torchvision  # takes seconds

    checks.smallest(size, _SMALLEST)
    checks.share(dropout=dropout)
    name = "vgg16_bn" if batch_norm else "vgg16"
    side = min(size // _SMALLEST, _LARGEST_MAP)
    with on_meta():  # its 123 million weights are drawn once, below
        network = torchvision.models.get_model(name, num_classes=classes, dropout=dropout)
        network.features[0] = nn.Conv2d(channels, 64, 3, padding=1)
        network.classifier[0] = nn.Linear(512 * side * side, _HIDDEN)
    network.avgpool = pool_to(_LARGEST_MAP, size // _SMALLEST)
    network.to_empty(device=torch.get_default_device())
    return cast(nn.Module, network.apply(_first_weights))


def _first_weights(layer: nn.Module) -> None:
    """As torchvision draws them."""
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.BatchNorm2d):
        layer.reset_parameters()
    elif isinstance(layer, nn.Conv2d):
        fan_out(layer)


def build_cifar(
    *, classes: int, channels: int, size: int, width: int = 64, batch_norm: bool = True
) -> nn.Module:
    """Convolutions 2, 2, 3, 3, 3, of 1, 2, 4, 8, 8 times `width` channels; one linear layer."""
    checks.smallest(size, _SMALLEST)
    checks.positive(width=width)
    layers: list[nn.Module] = []
    inputs = channels
    for count, factor in zip((2, 2, 3, 3, 3), (1, 2, 4, 8, 8), strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(inputs, width * factor, 3, padding=1))
            inputs = width * factor
            if batch_norm:
                layers.append(nn.BatchNorm2d(inputs))
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(*layers, *head(inputs, classes))
    fan_out(network)
    return network
