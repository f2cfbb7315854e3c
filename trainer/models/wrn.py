"""Wide residual networks (Zagoruyko & Komodakis): `wrn-28-10` is 28 layers, 10 times as wide.

Pre-activation blocks after a 3×3 stem of 16 channels; depth 6n+4, counted as the paper does, with
the three shortcuts that change shape. Those take relu(bn(x)). 36,479,194 parameters of 28-10.
"""

from torch import nn

from trainer.models import checks
from trainer.models.blocks import bn_relu, conv, fan_out, head, places
from trainer.models.preact import PreactBlock, Unit, preact_projection

_STEM = 16


def build(
    depth: int, factor: int, *, classes: int, channels: int, size: int, dropout: float = 0.0
) -> nn.Module:
    """`dropout`: after the first convolution of each block, the paper's is 0.3."""
    count = checks.blocks_per_stage(depth, 6, 4)
    checks.require(factor >= 1, "the width factor is at least 1")
    checks.share(dropout=dropout)
    checks.smallest(size, 4)
    unit = Unit(dropout=dropout)
    outputs = [_STEM * factor * 2**stage for stage in range(3)]
    blocks = [
        PreactBlock(
            place.inputs,
            place.outputs,
            place.stride,
            unit,
            shortcut=preact_projection(place.inputs, place.outputs, place.stride),
            shared=place.inputs != place.outputs,
        )
        for place in places(_STEM, outputs, [count] * 3)
    ]
    network = nn.Sequential(
        conv(channels, _STEM, 3),
        *blocks,
        *bn_relu(outputs[-1]),
        *head(outputs[-1], classes),
    )
    fan_out(network)
    return network
