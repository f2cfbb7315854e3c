"""Networks: their shapes, blocks and first weights against the papers and the three sources."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pipeline.errors import ConfigError
from trainer import models
from trainer.models import preact, pyramidnet, shake_shake
from trainer.models.blocks import BasicBlock, Bottleneck
from trainer.models.preact import PreactBlock, SqueezeExcite, Unit


def on_meta(name: str, size: int, classes: int = 10, channels: int = 3, **args: Any) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return models.build(name, classes=classes, channels=channels, size=size, **args)


# --- shapes ------------------------------------------------------------------------------------

SIZES = (16, 28, 32, 56, 64, 112, 224)
SMALLEST = {  # px; shallow members of each family
    "air": 2,
    "alexnet": 29,
    "cifar-resnet8": 4,
    "cnn": 8,
    "densenet-10-4": 4,
    "densenet-bc-10-4": 4,
    "densenet121": 8,
    "fc8": 1,
    "imagenet-preact-resnet18": 8,
    "imagenet-pyramidnet-18-48": 8,
    "imagenet-resnext50-32x4d": 8,
    "preact-resnet8": 4,
    "pyramidnet-8-6": 4,
    "resnet18": 8,
    "resnet18x1": 8,
    "resnet8x2": 4,
    "resnext11-2x4d": 4,
    "se-preact-resnet8": 4,
    "shake-shake8-2x4d": 4,
    "vgg15": 32,
    "vgg16": 32,
    "wrn-10-2": 4,
}


@pytest.mark.parametrize("name", SMALLEST)
def test_every_network_runs_at_every_size_or_says_from_which(name: str) -> None:
    """Forward and backward in shapes, 3 channels and 1; below that it is refused."""
    least = SMALLEST[name]
    for size in sorted({*SIZES, least, 7}):
        channels = 1 if size % 28 == 0 else 3
        if size < least:
            with pytest.raises(ConfigError, match=rf"{name}: needs inputs of at least {least} px"):
                on_meta(name, size, channels=channels)
            continue
        network = on_meta(name, size, 7, channels)
        logits = network(torch.empty(4, channels, size, size, device="meta"))
        assert logits.shape == (4, 7), size
        torch.autograd.backward(logits.sum())
        assert all(p.grad is not None for p in network.parameters() if p.requires_grad), size


REAL = [
    *[("cifar-resnet8", 14, {}), ("cifar-resnet11", 16, {"bottleneck": True, "width": 4})],
    *[
        ("resnet18", 16, {"width": 8}),
        ("resnet50", 66, {"width": 4}),
        ("resnet18", 9, {"width": 8}),
    ],
    *[("preact-resnet8", 16, {}), ("preact-resnet11", 14, {"bottleneck": True})],
    *[("se-preact-resnet8", 16, {"reduction": 2}), ("imagenet-preact-resnet18", 68, {"width": 4})],
    *[("wrn-10-1", 16, {"dropout": 0.3}), ("densenet-bc-10-4", 16, {"dropout": 0.2})],
    *[("densenet-10-4", 14, {}), ("pyramidnet-8-6", 14, {}), ("imagenet-pyramidnet-18-8", 70, {})],
    *[("pyramidnet-11-6", 14, {"bottleneck": True}), ("resnext11-2x4d", 16, {})],
    *[("shake-shake8-2x4d", 14, {}), ("vgg15", 32, {"width": 4}), ("cnn", 8, {"width": 8})],
    *[("alexnet", 45, {}), ("vgg16", 45, {"batch_norm": True}), ("fc8", 7, {"width": 32})],
]


@pytest.mark.parametrize(("name", "size", "args"), REAL)
def test_networks_learn_two_images_apart(name: str, size: int, args: dict[str, Any]) -> None:
    """Real numbers: finite gradients in all weights, and none of them idle."""
    torch.manual_seed(0)
    network = models.build(name, classes=3, channels=1, size=size, **args)
    logits = network(torch.randn(4, 1, size, size))
    torch.autograd.backward(F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])))
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    touched = [bool(p.grad.any()) for p in network.parameters() if p.grad is not None]
    assert sum(touched) > 0.9 * len(touched)


IMAGENET_TYPE = [
    *["resnet18", "resnet18x1", "imagenet-preact-resnet18", "densenet121"],
    *["imagenet-pyramidnet-18-48", "imagenet-resnext50-32x4d"],
]


@pytest.mark.parametrize("name", IMAGENET_TYPE)
def test_the_stem_is_small_up_to_64_px(name: str) -> None:
    """3×3 stride 1 without pooling; above, 7×7 stride 2 with it: maps of the last stage, px."""
    for size, kernel, last in ((32, 3, 4), (56, 3, 7), (64, 3, 8), (128, 7, 4), (224, 7, 7)):
        network = on_meta(name, size)
        sides = sides_of_maps(network, size)
        stem = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        assert (stem.kernel_size, sides[-1]) == ((kernel, kernel), last)
        assert sides[0] == (size if kernel == 3 else size // 2)


def sides_of_maps(network: nn.Module, size: int) -> list[int]:
    """Sides of all convolutions' outputs, px."""
    sides: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
    network(torch.empty(2, 3, size, size, device="meta"))
    return sides


def test_alexnet_has_the_same_map_at_56_as_at_112_px() -> None:
    shapes = [
        on_meta("alexnet", size).state_dict()["classifier.1.weight"].shape for size in (56, 112)
    ]
    assert shapes == [(4096, 256 * 2 * 2)] * 2


def test_pyramidnet_widens_in_equal_steps() -> None:
    """16 + 84·k/54 rounded, block after block; the map is halved twice."""
    blocks = [b for b in on_meta("pyramidnet-110-84", 32).modules() if isinstance(b, PreactBlock)]
    shortcuts = [b.shortcut for b in blocks]
    assert all(isinstance(s, pyramidnet.PaddedShortcut) for s in shortcuts)
    ends = list(itertools.accumulate((int(s.extra) for s in shortcuts), initial=16))  # type: ignore[arg-type]
    assert ends == [round(16 + 84 * k / 54) for k in range(55)]
    halved = [i for i, s in enumerate(shortcuts) if isinstance(s.pool, nn.AvgPool2d)]
    assert halved == [18, 36]


# --- blocks against slow twins -----------------------------------------------------------------


def norm(x: Tensor, bn: nn.Module) -> Tensor:
    """Batch norm in training, by its formula."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    scale, shift = (getattr(bn, key)[:, None, None] for key in ("weight", "bias"))
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def randomise(network: nn.Module) -> None:
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.5)


@pytest.mark.parametrize("first_relu", [True, False])
@pytest.mark.parametrize("last_bn", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_the_switches_of_a_preactivation_block(
    first_relu: bool, last_bn: bool, shared: bool
) -> None:
    """x + conv(relu(bn(conv(relu(bn(x)))))), with each switch as source 002 describes it."""
    unit = Unit(first_relu=first_relu, last_bn=last_bn)
    shortcut = preact.preact_projection(3, 4, 2)
    block = PreactBlock(3, 4, 2, unit, shortcut=shortcut, shared=shared)
    randomise(block)
    x = torch.randn(5, 3, 6, 6)
    y = norm(x, block.pre[0])
    y = y.relu() if first_relu or shared else y
    z = norm(F.conv2d(y, block.branch[0].weight, stride=2, padding=1), block.branch[1]).relu()
    z = F.conv2d(z, block.branch[3].weight, padding=1)
    z = norm(z, block.branch[4]) if last_bn else z
    assert len(block.branch) == 4 + last_bn
    wanted = z + F.conv2d(y if shared else x, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-4)


def test_the_switches_reach_the_blocks() -> None:
    """From model_args; stage by stage for preact_stage, whose first block alone is meant."""
    args = {"remove_first_relu": True, "add_last_bn": True, "preact_stage": [True, False, True]}
    blocks = [
        b for b in on_meta("preact-resnet14", 32, **args).modules() if isinstance(b, PreactBlock)
    ]
    assert [b.shared for b in blocks] == [True, False, False, False, True, False]
    assert [len(b.pre) == 2 for b in blocks] == [b.shared for b in blocks]
    assert all(isinstance(b.branch[-1], nn.BatchNorm2d) for b in blocks)
    plain = [b for b in on_meta("preact-resnet14", 32).modules() if isinstance(b, PreactBlock)]
    assert [b.shared for b in plain] == [True, False] * 3
    assert all(len(b.pre) == 2 for b in plain)
    assert not any(isinstance(b.branch[-1], nn.BatchNorm2d) for b in plain)


def test_a_wide_network_preactivates_shortcuts_that_project() -> None:
    """And drops out after the first convolution of every block."""
    blocks = [
        b for b in on_meta("wrn-16-2", 32, dropout=0.3).modules() if isinstance(b, PreactBlock)
    ]
    assert [b.shared for b in blocks] == [True, False] * 3
    assert all(isinstance(b.branch[1], nn.Dropout) for b in blocks)


def test_squeeze_and_excitation_weighs_channels() -> None:
    layer = SqueezeExcite(4, 2)
    x = torch.randn(3, 4, 5, 5)
    hidden = (x.mean((2, 3)) @ layer.weigh[2].weight.T + layer.weigh[2].bias).relu()
    weights = torch.sigmoid(hidden @ layer.weigh[4].weight.T + layer.weigh[4].bias)
    torch.testing.assert_close(layer(x), x * weights[:, :, None, None])
    found = [m for m in on_meta("se-preact-resnet20", 32).modules() if isinstance(m, SqueezeExcite)]
    assert len(found) == 9
    assert {m.weigh[2].in_features // m.weigh[2].out_features for m in found} == {16}


@pytest.mark.parametrize(("side", "half"), [(6, 3), (7, 4)])
def test_padded_shortcuts_average_and_fill_with_zeros(side: int, half: int) -> None:
    x = torch.randn(2, 3, side, side)
    y = pyramidnet.PaddedShortcut(3, 5, 2)(x)
    assert y.shape == (2, 5, half, half)
    torch.testing.assert_close(y[:, :3, 1, 1], x[:, :, 2:4, 2:4].mean((2, 3)))
    assert not y[:, 3:].any()


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", 8), ("resnet50", 16)])
def test_stochastic_depth_leaves_branches_out_image_by_image(name: str, blocks: int) -> None:
    """More often the deeper the block, never in evaluation; what stays is scaled up."""
    sizes: dict[str, Any] = {"classes": 3, "channels": 3, "size": 32, "width": 4}
    dropped = models.build(name, stochastic_depth=0.6, **sizes)
    plain = models.build(name, **sizes)
    plain.load_state_dict(dropped.state_dict())
    inputs = torch.randn(64, 3, 32, 32)
    assert dropped.eval()(inputs).equal(plain.eval()(inputs))
    found = [m for m in dropped.modules() if isinstance(m, StochasticDepth)]
    shares = [0.6 * i / (blocks - 1) for i in range(blocks)]
    assert [m.p for m in found] == pytest.approx(shares)
    block = dropped.layer4[1].train()
    maps = torch.randn(4000, 4 * 8 * (1 if name == "resnet18" else 4), 1, 1)
    p, block.relu = block.drop.p, nn.Identity()
    branch = (block(maps) - maps).flatten(1)
    block.drop.p = 0.0
    whole = (block(maps) - maps).flatten(1)
    gone = branch.eq(0).all(dim=1)
    assert abs(gone.float().mean().item() - p) < 0.03
    torch.testing.assert_close(branch[~gone], whole[~gone] / (1 - p), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet18", "resnet18"),
        ("resnet50", "resnet50"),
        ("imagenet-resnext50-32x4d", "resnext50_32x4d"),
    ],
)
def test_resnets_compute_what_torchvisions_do(name: str, theirs: str) -> None:
    """With the same weights: logits, in training too, statistics of batch norm, gradients."""
    ours = models.build(name, classes=1000, channels=3, size=72)
    other = torchvision.models.get_model(theirs)
    other.load_state_dict(ours.state_dict())
    inputs = torch.randn(4, 3, 72, 72)
    for network in (ours, other):
        network.train()(inputs).logsumexp(1).sum().backward()
    pairs = zip(ours.named_parameters(), other.named_parameters(), strict=True)
    for (own, weight), (_, same) in pairs:
        torch.testing.assert_close(weight.grad, same.grad, msg=own)
    for own, value in ours.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[own], msg=own)
    assert ours.eval()(inputs).equal(other.eval()(inputs))


@pytest.mark.parametrize("size", [32, 56, 112, 224])
@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_pools_in_front_of_linear_layers_are_there_where_they_do_something(
    name: str, size: int
) -> None:
    """Their gradients on a GPU are refused under `--deterministic`."""
    assert isinstance(on_meta(name, size).avgpool, nn.Identity)
    assert isinstance(on_meta(name, 320).avgpool, nn.AdaptiveAvgPool2d)


def test_dense_layers_add_to_what_there_is() -> None:
    """Every layer keeps its input as the first channels, and adds `growth`."""
    layer = models.densenet.DenseLayer(6, 4, 0.0, True)
    x = torch.randn(2, 6, 5, 5)
    y = layer(x)
    assert y.shape == (2, 10, 5, 5)
    torch.testing.assert_close(y[:, :6], x)


# --- shake-shake -------------------------------------------------------------------------------


def test_shake_mixes_forward_with_one_share_and_backward_with_another() -> None:
    a, b = (torch.randn(3, 2, 4, 4, requires_grad=True) for _ in range(2))
    alpha, beta = torch.rand(2, 3, 1, 1, 1)
    y = shake_shake.Shake.apply(a, b, alpha, beta)
    torch.testing.assert_close(y, alpha * a + (1 - alpha) * b)
    back = torch.randn_like(y)
    grads = torch.autograd.grad(y, (a, b), back)
    torch.testing.assert_close(grads, (beta * back, (1 - beta) * back))


def test_shares_differ_from_image_to_image_and_come_from_the_default_generator() -> None:
    """U(0, 1) forward and, of its own, backward; the same again from the same seed."""

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        a = torch.ones(4000, 1, 1, 1, requires_grad=True)
        y = shake_shake.shake(a, torch.zeros(4000, 1, 1, 1))
        return y.detach().flatten(), torch.autograd.grad(y.sum(), a)[0].flatten()

    alpha, beta = drawn(0)
    for shares in (alpha, beta):
        assert 0 <= shares.min() < 0.01 < 0.99 < shares.max() <= 1
        assert shares.mean() == pytest.approx(0.5, abs=0.03)
        assert shares.var() == pytest.approx(1 / 12, abs=0.01)
    assert torch.corrcoef(torch.stack([alpha, beta]))[0, 1].abs() < 0.1
    assert all(torch.equal(x, y) for x, y in zip(drawn(0), (alpha, beta), strict=True))
    assert not torch.equal(drawn(1)[0], alpha)


def test_branches_count_half_each_in_evaluation() -> None:
    block = shake_shake.ShakeBlock(4, 4, 1).eval()
    x = torch.randn(2, 4, 5, 5)
    wanted = x + (block.branch1(x) + block.branch2(x)) / 2
    state = torch.get_rng_state()
    torch.testing.assert_close(block(x), wanted)
    assert torch.equal(torch.get_rng_state(), state)  # and nothing is drawn
    block.train()
    assert not torch.equal(block(x), block(x))


def test_the_skip_reads_two_shifted_grids() -> None:
    skip = shake_shake.ShiftedSkip(2, 6, 2)
    x = torch.randn(3, 2, 5, 5)
    shifted = torch.zeros(3, 2, 5, 5)
    shifted[:, :, :4, :4] = x[:, :, 1:, 1:]
    halves = [
        torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], grid.relu()[:, :, ::2, ::2])
        for conv, grid in ((skip.conv1, x), (skip.conv2, shifted))
    ]
    torch.testing.assert_close(skip(x), norm(torch.cat(halves, 1), skip.bn), rtol=1e-4, atol=1e-5)


# --- first weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("preact-resnet20", 32, {}),
        ("se-preact-resnet20", 32, {}),
        ("imagenet-preact-resnet18", 64, {}),
        ("wrn-10-4", 32, {}),
        ("densenet-40-12", 32, {}),
        ("densenet-bc-40-12", 32, {}),
        ("densenet121", 64, {}),
        ("pyramidnet-20-84", 32, {}),
        ("resnext29-2x16d", 32, {}),
        ("imagenet-resnext50-32x4d", 64, {}),
        ("shake-shake8-2x32d", 32, {}),
        ("vgg15", 32, {}),
        ("cnn", 32, {}),
    ],
)
def test_first_weights_of_source_002(name: str, size: int, args: dict[str, Any]) -> None:
    """Normal, of variance 2 / fan-out, in convolutions and the head; no bias; BN is 1 and 0."""
    torch.manual_seed(0)
    network = models.build(name, classes=10, channels=3, size=size, **args)
    for key, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            variance = 2 / (weight.shape[0] * weight[0, 0].numel())
            if weight.numel() > 1000:
                assert float(weight.detach().std()) == pytest.approx(variance**0.5, rel=0.12), key
            assert module.bias is None or not module.bias.any(), key
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()), key
            assert not module.bias.any(), key


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet20x2", 9), ("resnet18x1", 8), ("resnet50x1", 16)]
)
def test_first_weights_of_source_003(name: str, blocks: int) -> None:
    """The last BN of each block and the head, which has no bias, are 0; other BNs are not."""
    network = models.build(name, classes=5, channels=3, size=16)
    assert not network(torch.randn(2, 3, 16, 16)).any()
    found = [m for m in network.modules() if isinstance(m, BasicBlock | Bottleneck)]
    lasts = [b.bn3 if isinstance(b, Bottleneck) else b.bn2 for b in found]
    assert len(found) == blocks
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m for m in norms if not m.weight.any()] == lasts
    heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert [h.bias for h in heads] == [None]
