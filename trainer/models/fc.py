"""Fully connected networks, FC-8L of the small-data rows among them.

Depth counts linear layers. Theirs is not published: the width is ours.
"""

from torch import nn

from pipeline.errors import ConfigError


def build(depth: int, *, classes: int, channels: int, size: int, width: int = 512) -> nn.Module:
    """`depth` - 1 hidden layers of `width` units with ReLU, no normalisation."""
    if depth < 1 or width < 1:
        raise ConfigError(f"fc{depth}: depth and model_args.width are at least 1")
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
