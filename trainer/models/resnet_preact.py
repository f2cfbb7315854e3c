"""Pre-activation ResNets, with and without squeeze-and-excitation, and their switches.

He et al., "Identity Mappings in Deep Residual Networks"; Hu et al., "Squeeze-and-Excitation
Networks"; the switches are those of source 002's ablation (remove_first_relu and add_last_bn:
Han et al., "Deep Pyramidal Residual Networks"). CIFAR-type: 3×3 stem, three stages, depth 6n+2,
or 9n+2 of bottlenecks; 272,282 parameters for depth 20. ImageNet-type: four stages of He et
al.'s depths after the 7×7 stem, up to 64 px after the small one.

A bottleneck's first stage is 4 times as wide as its 3×3 convolutions, as in the paper (164:
1,703,258 parameters). The code behind source 002 leaves it at 16 (4 inside).
"""

from collections.abc import Sequence

from torch import nn

from trainer.models import checks
from trainer.models.blocks import bn_relu, conv, fan_out, head, places, stem
from trainer.models.preact import PreactBlock, Unit, preact_projection
from trainer.models.resnet import BLOCKS, DEPTHS


def build(
    depth: int,
    *,
    classes: int,
    channels: int,
    size: int,
    width: int = 16,
    bottleneck: bool = False,
    remove_first_relu: bool = False,
    add_last_bn: bool = False,
    preact_stage: Sequence[bool] = (True, True, True),
) -> nn.Module:
    """`width`: channels of the first stage's 3×3 convolutions, doubled in each of the next two.

    `remove_first_relu`: of each block. `add_last_bn`: to each block. `preact_stage`: of which
    stages the first block's shortcut also takes relu(bn(x)).
    """
    unit = Unit(bottleneck=bottleneck, first_relu=not remove_first_relu, last_bn=add_last_bn)
    return _cifar(depth, classes, channels, size, width, unit, preact_stage)


def build_se(
    depth: int,
    *,
    classes: int,
    channels: int,
    size: int,
    width: int = 16,
    bottleneck: bool = False,
    remove_first_relu: bool = False,
    add_last_bn: bool = False,
    preact_stage: Sequence[bool] = (True, True, True),
    reduction: int = 16,
) -> nn.Module:
    """The same with channels weighed at the end of each branch, through 1/`reduction` of them."""
    checks.positive(reduction=reduction)
    unit = Unit(
        bottleneck=bottleneck,
        first_relu=not remove_first_relu,
        last_bn=add_last_bn,
        reduction=reduction,
    )
    return _cifar(depth, classes, channels, size, width, unit, preact_stage)


def build_imagenet(
    depth: int,
    *,
    classes: int,
    channels: int,
    size: int,
    width: int = 64,
    remove_first_relu: bool = False,
    add_last_bn: bool = False,
    preact_stage: Sequence[bool] = (True, True, True, True),
) -> nn.Module:
    """The same of four stages; bottlenecks from depth 50."""
    checks.one_of(depth, DEPTHS)
    checks.positive(width=width)
    checks.smallest(size, 8)
    unit = Unit(bottleneck=depth >= 50, first_relu=not remove_first_relu, last_bn=add_last_bn)
    layers = stem(channels, width, size)
    return _network(layers, width, BLOCKS[depth], classes, unit, preact_stage)


def _cifar(
    depth: int,
    classes: int,
    channels: int,
    size: int,
    width: int,
    unit: Unit,
    preact_stage: Sequence[bool],
) -> nn.Module:
    count = checks.blocks_per_stage(depth, 9 if unit.bottleneck else 6, 2)
    checks.positive(width=width)
    checks.smallest(size, 4)
    return _network([conv(channels, width, 3)], width, [count] * 3, classes, unit, preact_stage)


def _network(
    first: list[nn.Module],
    width: int,
    counts: Sequence[int],
    classes: int,
    unit: Unit,
    preact_stage: Sequence[bool],
) -> nn.Module:
    """All after the `first` layers, which give `width` channels."""
    stages = len(counts)
    checks.require(
        len(preact_stage) == stages,
        f"model_args.preact_stage = {list(preact_stage)}: {stages} of true or false, one a stage",
    )
    outputs = [width * 2**stage * unit.expansion for stage in range(stages)]
    blocks = [
        PreactBlock(
            place.inputs,
            place.outputs,
            place.stride,
            unit,
            shortcut=preact_projection(place.inputs, place.outputs, place.stride),
            shared=place.first and preact_stage[place.stage],
        )
        for place in places(width, outputs, counts)
    ]
    network = nn.Sequential(*first, *blocks, *bn_relu(outputs[-1]), *head(outputs[-1], classes))
    fan_out(network)
    return network
