"""The small convolutional network of the small-data rows ("CNN"; theirs is not published).

Ours: three pairs of 3×3 convolutions with BN, a max-pool after each pair, global average pool,
one linear layer; 1,148,874 parameters for CIFAR-10. 8 px, a plane of a 16th of CIFAR, still fit.
"""

from torch import nn

from trainer.models import checks
from trainer.models.blocks import bn_relu, conv, fan_out, head


def build(
    *, classes: int, channels: int, size: int, width: int = 64, dropout: float = 0.0
) -> nn.Module:
    """`width` channels in the first pair, doubled in each of the next two; `dropout` after each."""
    checks.smallest(size, 8)
    checks.positive(width=width)
    checks.share(dropout=dropout)
    layers: list[nn.Module] = []
    inputs = channels
    for outputs in (width, 2 * width, 4 * width):
        layers += [conv(inputs, outputs, 3), *bn_relu(outputs)]
        layers += [conv(outputs, outputs, 3), *bn_relu(outputs), nn.MaxPool2d(2)]
        layers += [nn.Dropout(dropout)] if dropout else []
        inputs = outputs
    network = nn.Sequential(*layers, *head(inputs, classes))
    fan_out(network)
    return network
