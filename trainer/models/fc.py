"""Fully connected networks, FC-8L of the small-data rows among them.

Depth counts linear layers. Theirs is not published: the width is ours.
"""

from torch import nn

from trainer.models import checks


def build(depth: int, *, classes: int, channels: int, size: int, width: int = 512) -> nn.Module:
    """`depth` - 1 hidden layers of `width` units with ReLU, no normalisation."""
    checks.require(depth >= 1, "the depth is at least 1")
    checks.positive(width=width)
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = channels * size * size
    for _ in range(depth - 1):
        layers += [nn.Linear(inputs, width), nn.ReLU(inplace=True)]
        inputs = width
    layers.append(nn.Linear(inputs, classes))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
