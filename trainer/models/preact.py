"""The pre-activation block (He et al., "Identity Mappings in Deep Residual Networks"), in all
the forms that families here make of it: WRN, PyramidNet, SE-ResNet and those of source 002.
"""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from trainer.models.blocks import bn_relu, conv

EXPANSION = 4  # outputs of a bottleneck over its inner channels


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What a block's residual branch is made of.

    `first_relu`: after the first BN. `last_bn`: after the last convolution. `dropout`: after
    the first convolution. `reduction`: of squeeze-and-excitation, 0 for none.
    """

    bottleneck: bool = False
    first_relu: bool = True
    last_bn: bool = False
    dropout: float = 0.0
    reduction: int = 0

    @property
    def expansion(self) -> int:
        """Outputs of a block over the width of its stage."""
        return EXPANSION if self.bottleneck else 1


class SqueezeExcite(nn.Module):
    """Channels weighed by sigmoid(fc(relu(fc(mean)))) (Hu et al., "Squeeze-and-Excitation")."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, inner),
            nn.ReLU(inplace=True),
            nn.Linear(inner, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) → the same shape."""
        return cast(Tensor, x * self.weigh(x)[:, :, None, None])


class PreactBlock(nn.Module):
    """x' + branch(pre(x)), pre = relu(bn(·)); x' = shortcut(x), or of pre(x) if `shared`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        unit: Unit,
        *,
        shortcut: nn.Module,
        shared: bool = False,
    ) -> None:
        super().__init__()
        # a shortcut that takes pre(x) takes it with its ReLU, as the source does
        relu = unit.first_relu or shared
        self.pre = nn.Sequential(*bn_relu(inputs)[: 2 if relu else 1])
        self.branch = nn.Sequential(*_branch(inputs, outputs, stride, unit))
        self.shortcut = shortcut
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h/stride, w/stride)."""
        y = self.pre(x)
        return cast(Tensor, self.branch(y) + self.shortcut(y if self.shared else x))


def preact_projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A 1×1 convolution without BN where the shape changes, else the identity."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return conv(inputs, outputs, 1, stride)


def _branch(inputs: int, outputs: int, stride: int, unit: Unit) -> list[nn.Module]:
    """The convolutions and all between them; the first BN is before this."""
    drop: list[nn.Module] = [nn.Dropout(unit.dropout)] if unit.dropout else []
    inner = outputs // unit.expansion
    if unit.bottleneck:
        layers = [conv(inputs, inner, 1), *drop, *bn_relu(inner), conv(inner, inner, 3, stride)]
        layers += [*bn_relu(inner), conv(inner, outputs, 1)]
    else:
        layers = [conv(inputs, inner, 3, stride), *drop, *bn_relu(inner), conv(inner, inner, 3)]
    if unit.last_bn:
        layers.append(nn.BatchNorm2d(outputs))
    if unit.reduction:
        layers.append(SqueezeExcite(outputs, unit.reduction))
    return layers
