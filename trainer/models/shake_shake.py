"""Shake-shake networks (Gastaldi, "Shake-Shake regularization"), form S-S-I.

`shake-shake26-2x64d`: 26 layers, two branches of 64 channels in the first stage; 11,653,978
parameters. Branches are mixed α : 1−α, their gradients β : 1−β; α and β are drawn from U(0, 1)
for each image of a training batch, from torch's default generator, and are ½ in evaluation.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.models import checks
from trainer.models.blocks import conv, fan_out, head, places

_STEM = 16


class Shake(torch.autograd.Function):
    """α·a + (1−α)·b, whose gradients are β and 1−β of what comes back."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """Branches a, b: (B, c, h, w); alpha, beta: (B, 1, 1, 1)."""
        ctx.save_for_backward(beta)
        return torch.lerp(b, a, alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Of a and b."""
        (beta,) = ctx.saved_tensors
        return beta * grad, (1 - beta) * grad, None, None


def shake(a: Tensor, b: Tensor) -> Tensor:
    """Two branches (B, c, h, w) mixed at random. Both shares are drawn here, so that they do not
    depend on when and in which thread the gradients are taken.
    """
    shares = torch.rand(2, len(a), 1, 1, 1, device=a.device).to(a.dtype)
    return cast(Tensor, Shake.apply(a, b, shares[0], shares[1]))


class ShiftedSkip(nn.Module):
    """bn of two half-width 1×1 convolutions of relu(x), the second read one pixel
    further down and right.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs // 2, 1, stride)
        self.conv2 = conv(inputs, outputs // 2, 1, stride)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h/stride, w/stride)."""
        x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return cast(Tensor, self.bn(torch.cat([self.conv1(x), self.conv2(shifted)], dim=1)))


class ShakeBlock(nn.Module):
    """x' + shake of two branches ReLU-conv-BN-ReLU-conv-BN; x' = x or its shifted skip."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch1 = _branch(inputs, outputs, stride)
        self.branch2 = _branch(inputs, outputs, stride)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ShiftedSkip(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h/stride, w/stride)."""
        a, b = self.branch1(x), self.branch2(x)
        mixed = shake(a, b) if self.training else (a + b) / 2
        return cast(Tensor, self.shortcut(x) + mixed)


def _branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),  # not in place: all branches read x
        conv(inputs, outputs, 3, stride),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        conv(outputs, outputs, 3),
        nn.BatchNorm2d(outputs),
    )


def build(depth: int, width: int, *, classes: int, channels: int, size: int) -> nn.Module:
    """Depth 6n+2, `width` channels in the first stage, doubled in each of the next two."""
    count = checks.blocks_per_stage(depth, 6, 2)
    even = width >= 2 and width % 2 == 0
    checks.require(even, "the width of a branch is even, such as 32, 64, 96, 112, 128")
    checks.smallest(size, 4)
    outputs = [width * 2**stage for stage in range(3)]
    blocks = (
        ShakeBlock(p.inputs, p.outputs, p.stride) for p in places(_STEM, outputs, [count] * 3)
    )
    network = nn.Sequential(
        conv(channels, _STEM, 3),
        nn.BatchNorm2d(_STEM),
        *blocks,
        nn.ReLU(inplace=True),
        *head(outputs[-1], classes),
    )
    fan_out(network)
    return network
