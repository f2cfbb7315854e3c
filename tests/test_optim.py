"""Optimisers and learning rates: what each step of them computes."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from pipeline.errors import ConfigError
from trainer.methods import optim
from trainer.methods.schedule import lr_at
from trainer.recipes.recipe import Optimizer, Schedule

EPOCHS, PER_EPOCH = 12, 10


def rates(schedule: Schedule, peak: float = 0.4, epochs: int = EPOCHS) -> list[float]:
    steps = epochs * PER_EPOCH
    return [lr_at(schedule, peak, s, steps=steps, per_epoch=PER_EPOCH) for s in range(steps)]


def torchs(make, per_epoch: int = 1, epochs: int = EPOCHS, peak: float = 0.4) -> list[float]:  # type: ignore[no-untyped-def]
    """The rates that a scheduler of torch sets, called `per_epoch` times an epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], peak)
    scheduler = make(optimizer)
    found = []
    for _ in range(epochs * per_epoch):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_the_rate_warms_up_peaks_and_ends_where_it_should() -> None:
    """Every iteration of the warm-up has its own rate, and none is multiplied twice."""
    for warmup in ({"warmup_epochs": 1.2}, {"warmup_share": 0.1}):
        found = rates(Schedule(final_lr=0.01, **warmup))  # type: ignore[arg-type]
        assert found[12] == max(found) == 0.4
        assert found[-1] == pytest.approx(0.01)
        assert found[:12] == pytest.approx([0.4 * (s + 1) / 13 for s in range(12)])
        assert found[12:] == sorted(found[12:], reverse=True)
    assert lr_at(Schedule(), 0.4, 0, steps=1, per_epoch=1) == 0.4


def test_a_cosine_is_torchs() -> None:
    steps = EPOCHS * PER_EPOCH
    expected = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, steps - 1, 1e-4), PER_EPOCH)
    assert rates(Schedule(final_lr=1e-4)) == pytest.approx(expected)


def test_steps_and_milestones_are_torchs() -> None:
    """Constant within an epoch, so that torch's rate of an epoch is that of all of its steps."""
    expected = torchs(lambda o: lr_scheduler.StepLR(o, 5, 0.1))
    assert rates(Schedule(name="step", period_epochs=5))[::PER_EPOCH] == pytest.approx(expected)
    expected = torchs(lambda o: lr_scheduler.MultiStepLR(o, [3, 9], 0.2))
    found = rates(Schedule(name="multistep", milestones=[3.0, 9.0], gamma=0.2))
    assert found[::PER_EPOCH] == found[9::PER_EPOCH] == pytest.approx(expected)
    assert rates(Schedule(name="constant")) == [0.4] * 120


def test_sgdr_restarts_where_torchs_does() -> None:
    """Periods of 2, 4 and 6 of 8 epochs: the rate is back at its peak at epochs 2 and 6."""
    expected = torchs(
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2 * PER_EPOCH, 2, 1e-3), PER_EPOCH
    )
    found = rates(Schedule(name="sgdr", period_epochs=2, period_factor=2, final_lr=1e-3))
    assert found == pytest.approx(expected)
    assert [s for s, rate in enumerate(found) if rate == 0.4] == [0, 20, 60]


def test_one_cycle_is_torchs() -> None:
    expected = torchs(lambda o: lr_scheduler.OneCycleLR(o, 0.4, 120), PER_EPOCH)
    assert rates(Schedule(name="onecycle")) == pytest.approx(expected)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def gradients(net: nn.Module) -> None:
    net.zero_grad()
    torch.autograd.backward(net(torch.ones(5, 3, 4, 4).cumsum(3)).square().mean())


def test_weight_decay_is_for_all_weights_or_for_kernels_and_matrices_alone() -> None:
    """With gradients of zero a step of SGD is weight decay alone."""
    for decay_all, expected in ((True, set("01234567")), (False, set("04"))):
        net = network()
        settings = Optimizer(weight_decay=0.5, lr=0.1, decay_all=decay_all)
        chosen = optim.build(net, settings)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(1.0)
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        chosen.step()
        changed = {str(i) for i, p in enumerate(net.parameters()) if (p != 1).all()}
        assert changed == expected & {str(i) for i in range(6)}


def test_lars_has_the_local_rate_of_its_paper() -> None:
    """w ← w − lr · ‖w‖/(‖g‖ + decay·‖w‖) · (g + decay·w), at the first step without momentum."""
    net = network()
    settings = Optimizer(name="lars", lr=0.1, momentum=0.0, nesterov=False, weight_decay=1e-2)
    chosen = optim.build(net, settings)
    gradients(net)
    before = [(p.detach().clone(), p.grad.clone()) for p in net.parameters() if p.grad is not None]
    chosen.step()
    for parameter, (w, g) in zip(net.parameters(), before, strict=True):
        if w.norm() and g.norm():
            local = w.norm() / (g.norm() + 1e-2 * w.norm())
            expected = w - 0.1 * local * (g + 1e-2 * w)
            assert torch.allclose(parameter, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars", "lamb"])
def test_every_optimiser_lowers_the_loss_and_resumes_from_its_state(name: str) -> None:
    """Bit for bit as if it had not stopped."""
    one, other = network(), network()
    settings = Optimizer(name=name, lr=1e-3, weight_decay=1e-4)
    chosen, stopped = optim.build(one, settings), optim.build(other, settings)
    losses = []
    for step in range(6):
        for net, optimizer in ((one, chosen), (other, stopped)):
            gradients(net)
            optimizer.step()
        losses.append(one(torch.ones(5, 3, 4, 4).cumsum(3)).square().mean().item())
        if step == 2:
            resumed = optim.build(other, settings)
            resumed.load_state_dict(stopped.state_dict())
            stopped = resumed
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_contradictions_are_refused() -> None:
    for wrong in (
        {"name": "multistep"}, {"name": "poly"}, {"warmup_epochs": 1.0, "warmup_share": 0.1},
        {"name": "onecycle", "warmup_epochs": 1.0}, {"gamma": 0.0},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"recipe: schedule\."):
            Schedule(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"optimizer\.amsgrad"):
        Optimizer(amsgrad=True)
