"""Source 003's ResNets, whose blocks and head all begin as zero (its "R20×4": `resnet20x4`).

Depths 20, 32, 44, 56, … have three stages, 16 planes wide in the first; 18, 34, 50, 101, 152
four, 64 wide; all × the width factor but the stem, as the sizes that it states tell. 3×3 stride-1
stem without pooling up to 64 px, 7×7 and pool above. The last BN's γ of a block begins as 0 (Goyal
et al., "Accurate, Large Minibatch SGD"), so do the weights of the head, which has no bias: all
logits are 0 at first. 272,464 parameters of R20×1 for 10 classes, 11,173,952 of R18×1.
"""

from typing import cast

from torch import nn

from trainer.models import checks
from trainer.models.blocks import BasicBlock, Bottleneck, stem
from trainer.models.resnet_cifar import stages
from trainer.models.resnet_imagenet import BLOCKS, DEPTHS


def build(depth: int, factor: int, *, classes: int, channels: int, size: int) -> nn.Module:
    """(B, channels, size, size) → (B, classes)."""
    checks.require(factor >= 1, "the width factor is at least 1")
    four = depth in DEPTHS
    checks.smallest(size, 8 if four else 4)
    counts = BLOCKS[depth] if four else _three(depth)
    planes = 64 if four else 16
    first = stem(channels, planes, size)
    network = stages(first, planes, counts, planes * factor, classes, four and depth >= 50)
    _begin_as_zero(network)
    return network


def _three(depth: int) -> list[int]:
    """Blocks a stage where there are three stages."""
    known = depth >= 8 and depth % 6 == 2
    four = ", ".join(map(str, DEPTHS))
    checks.require(known, f"the depth is 6n+2, such as 20, 32, 44, 56, or one of {four}")
    return [(depth - 2) // 6] * 3


def _begin_as_zero(network: nn.Sequential) -> None:
    for block in network:
        if isinstance(block, BasicBlock | Bottleneck):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            nn.init.zeros_(last.weight)
    head = cast(nn.Linear, network[-1])
    network[-1] = nn.Linear(head.in_features, head.out_features, bias=False)
    nn.init.zeros_(cast(nn.Linear, network[-1]).weight)
