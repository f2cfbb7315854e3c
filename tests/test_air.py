"""The small fast network and what its recipe is made of: each piece computes what it says."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim import lr_scheduler
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from pipeline.planes.splitter import Splitter
from pipeline.preparation import preparation
from tests.conftest import SUB4, spectral_here
from trainer import models
from trainer.data.feed import Plan
from trainer.methods import optim
from trainer.methods.augment import translate
from trainer.methods.draws import BLOCK
from trainer.methods.schedule import lr_at
from trainer.methods.views import Views
from trainer.models.air import WhiteningStem
from trainer.process.world import World
from trainer.recipes.recipe import Augment, Optimizer, Recipe, Schedule
from trainer.record.weights import load_weights
from trainer.run.guard import Statistics
from trainer.run.setup import AlternatingFlips

ALONE = World(0, 1, torch.device("cpu"))


def air(size: int, **args: int) -> torch.nn.Module:
    return models.build("air", classes=10, channels=3, size=size, **args)


def test_its_cost_is_the_papers() -> None:
    """236 MFLOP forward at 32 px."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        air(32).eval()(torch.empty(1, 3, 32, 32))
    assert counter.get_total_flops() == pytest.approx(236e6, rel=0.005)


@pytest.mark.parametrize(("size", "pools"), [(2, 0), (4, 1), (8, 2), (9, 3), (16, 3), (56, 3)])
def test_it_pools_as_often_as_the_side_allows(size: int, pools: int) -> None:
    network = air(size, width=4)
    kept = [isinstance(block.pool, torch.nn.MaxPool2d) for block in network.blocks]  # type: ignore[union-attr]
    assert kept == [False] * (3 - pools) + [True] * pools
    assert network(torch.randn(2, 3, size, size)).shape == (2, 10)
    with pytest.raises(ConfigError, match=f"from 0 to {pools} for {size} px"):
        air(size, pools=pools + 1)


def test_the_stem_whitens_the_patches_it_was_fitted_to() -> None:
    """Uncorrelated and of unit second moment; the second half is the first one, negated."""
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(200, 3, 18, 18), 3, 1)  # neighbours are alike
    stem = WhiteningStem(3, eps=0.0)
    stem.fit(images)
    found = stem(images).transpose(0, 1).flatten(1)
    own = found[:12]
    assert torch.allclose(own @ own.T / own.shape[1], torch.eye(12), atol=1e-3)
    assert torch.equal(found[12:], -own)
    assert "weight" not in dict(stem.named_parameters())


@pytest.mark.parametrize("skipped", [1.0, 0.0])
def test_buffers_of_any_layout_are_put_back_after_a_step_that_does_not_count(
    skipped: float,
) -> None:
    network = air(16, width=4).to(memory_format=torch.channels_last)
    network.stem.fit(torch.randn(50, 3, 16, 16))  # type: ignore[union-attr, operator]
    statistics = Statistics(network)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    statistics.keep()
    network(torch.randn(8, 3, 16, 16))
    after = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    statistics.restore(torch.tensor(skipped))
    expected = before if skipped else after
    assert all(torch.equal(value, expected[name]) for name, value in network.named_buffers())


def test_convolutions_pass_on_what_comes_in() -> None:
    block = air(32, width=4).blocks[1]  # type: ignore[index]
    x = torch.randn(2, 4, 6, 6)
    assert torch.allclose(block.conv1(x)[:, :4], x, atol=1e-6)


def test_two_epochs_in_a_row_show_both_sides_of_every_image() -> None:
    """By the image, wherever it comes in the order; for each process that of its share."""
    plan = Plan(samples=101, batch_size=10, seed=3, world=ALONE)
    shares = [Plan(samples=101, batch_size=10, seed=3, world=World(r, 2, ALONE.device))
              for r in range(2)]  # fmt: skip

    def sides(plan: Plan, epoch: int) -> dict[int, bool]:
        flips, steps = AlternatingFlips(plan), np.arange(plan.steps) + epoch * plan.steps
        drawn = np.concatenate([flips(epoch, int(s) // BLOCK)[int(s) % BLOCK] for s in steps])
        return dict(zip(plan.order(epoch).tolist(), drawn.tolist(), strict=True))

    epochs = [sides(plan, epoch) for epoch in range(6)]
    for first, second in pairwise(epochs):
        both = first.keys() & second.keys()
        assert len(both) > 95
        assert all(first[image] != second[image] for image in both)
    assert 30 < sum(epochs[0].values()) < 70
    assert {**sides(shares[0], 4), **sides(shares[1], 4)} == epochs[4]


def test_a_reflected_border_is_torchs() -> None:
    values = torch.randint(-127, 128, (30, 3, 7, 9), dtype=torch.int8)
    offsets = torch.randint(-3, 4, (30, 2))
    moved = translate(values, offsets, 3, "reflect")
    padded = F.pad(values.float(), (3, 3, 3, 3), mode="reflect")
    for image, (down, right) in enumerate(offsets.tolist()):
        expected = padded[image, :, 3 - down : 10 - down, 3 - right : 12 - right]
        assert torch.equal(moved[image].float(), expected)


def test_biases_learn_faster_and_decay_as_much() -> None:
    """Without gradients each weight shrinks by the same share; with them biases move further."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = Optimizer(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.5, bias_lr_factor=8)
    built = optim.build(network, optimizer)
    optim.set_rates(built, 0.1, 0.0)
    before = [p.detach().clone() for p in network.parameters()]
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    built.step()
    for p, old in zip(network.parameters(), before, strict=True):
        assert torch.allclose(p, old * (1 - 0.1 * 0.5))
    assert [group["lr"] for group in built.param_groups] == pytest.approx([0.1, 0.8])


def test_the_stem_learns_in_its_epochs_alone() -> None:
    network = air(16, width=4)
    built = optim.build(network, Optimizer(lr=0.1, stem_epochs=3.0))
    rates = []
    for epoch in (0.0, 2.99, 3.0):
        optim.set_rates(built, 0.1, epoch)
        (group,) = (
            g for g in built.param_groups if any(p is network.stem.bias for p in g["params"])
        )  # type: ignore[union-attr]
        rates.append(group["lr"])
    assert rates == [0.1, 0.1, 0.0]


def test_a_linear_rate_is_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], 0.4)
    scheduler = lr_scheduler.LinearLR(sgd, 1.0, 0.1, total_iters=99)
    for step in range(100):
        ours = lr_at(Schedule(name="linear", final_lr=0.04), 0.4, step, steps=100, per_epoch=10)
        assert ours == pytest.approx(scheduler.get_last_lr()[0])
        sgd.step()
        scheduler.step()


@pytest.mark.parametrize(("transform", "exact"), [("dct2", True), ("dct", False)])
def test_views_of_the_mirrored_image_are_the_same(transform: str, exact: bool) -> None:
    """Of all planes stacked; of `dct`, where a flip is not exact, the image is seen as it is."""
    prep = preparation("any", 4, size=16, transform=transform)
    splitter, clipped = Splitter(prep), np.zeros(4, np.int64)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    planes = [splitter.empty(), splitter.empty()]
    for found, seen in zip(planes, (image, image[:, ::-1]), strict=True):
        splitter.split(np.ascontiguousarray(seen), found, clipped)
    views = Views(Recipe(model="air", batch_size=2, epochs=1, test_flip=True, test_shift=1), prep,
                  (0, 1, 2, 3))  # fmt: skip
    shown = [list(views(torch.from_numpy(p)[None].flatten(1, 2))) for p in planes]
    assert len(shown[0]) == (6 if exact else 3)
    assert sum(weight for _, weight in shown[0]) == pytest.approx(1.0)
    if exact:
        kinds = [{seen.numpy().tobytes() for seen, _ in each[:2]} for each in shown]
        assert kinds[0] == kinds[1]
        assert len(kinds[0]) == 2


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        ({"alternating_flip": True, "horizontal_flip": False}, "false without horizontal_flip"),
        ({"shift_border": "black"}, "shift_border"),
    ],
)
def test_what_makes_no_sense_is_refused(augment: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Augment(**augment)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"1 with augment\.alternating_flip"):
        Recipe(model="air", batch_size=4, epochs=1, repeats=2,
               augment=Augment(alternating_flip=True))  # fmt: skip


def test_a_run_trains_on_planes_together(data: Path, tmp_path: Path) -> None:
    """Said in one option, listed under its name; a dry run says its size."""
    changes = [w for s in ("epochs=2", "batch_size=16", "model_args.width=4") for w in ("--set", s)]
    command = ("train", "--data", data / SUB4, "--runs", tmp_path, "--recipe", "air", *changes,
               "--name", "x", "--shard", "0+1+2-3")  # fmt: skip
    dry = spectral_here(*command, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "air on 12×16×16, 3 classes" in dry.stdout
    done = spectral_here(*command)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.rglob("shard_00+01+02+03")
    weights = load_weights(run / "best.safetensors").tensors
    assert weights["stem.weight"].shape == (96, 12, 2, 2)
    assert weights["stem.weight"].abs().sum() > 0
    listed = spectral_here("status", "--runs", tmp_path, "0+1+2+3", "finished")
    assert "0+1+2+3" in listed.stdout, listed.stdout
    assert "already finished" in spectral_here(*command).stdout
