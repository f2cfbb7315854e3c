"""One step of training: what it computes, what it leaves alone, and where weights start."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pipeline.errors import ConfigError, DamagedError
from trainer import models
from trainer.process.device import free_memory
from trainer.process.world import World
from trainer.recipes.recipe import Augment, Optimizer, Recipe
from trainer.run import pretrained
from trainer.run.execution import Due, Interval
from trainer.run.step import Stepper

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def recipe(**values: object) -> Recipe:
    optimizer = Optimizer(lr=0.1, momentum=0.9, weight_decay=1e-3)
    return Recipe(model="any", epochs=1, batch_size=12, optimizer=optimizer, **values)  # type: ignore[arg-type]


def network(kind: str = "cifar-resnet8") -> nn.Module:
    torch.manual_seed(3)
    return models.build(kind, classes=4, channels=3, size=8, width=8)


def batch(seed: int = 0) -> tuple[Tensor, list[tuple[Tensor, float]]]:
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(12, 3, 8, 8, generator=rng)
    labels = torch.randint(4, (2, 12), generator=rng)
    return inputs, [(labels[0], 0.7), (labels[1], 0.3)]


def counted(
    stepper: Stepper, of: tuple[Tensor, list[tuple[Tensor, float]]], lr: float = 0.1
) -> bool:
    """One step, and whether it counted."""
    stepper.step(*of, lr=lr, batch=12)
    return stepper.read_counters().counted == 1


def copied(stepper: Stepper) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in stepper.network.state_dict().items()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "half"])
def test_a_step_with_gradients_that_are_not_finite_changes_nothing(precision: str) -> None:
    """Neither weights nor momenta nor the running statistics, which forward has spoilt by then;
    and the next step is as if it had not been.
    """
    disturbed, calm = (
        Stepper(network(), recipe(precision=precision, ema=0.5), ALONE) for _ in "ab"
    )
    for stepper in (disturbed, calm):
        assert counted(stepper, batch())
    before = copied(disturbed)
    inputs, targets = batch(1)
    inputs[3, 0, 2, 2] = float("inf")
    assert not counted(disturbed, (inputs, targets))
    assert largest_difference(copied(disturbed), before) == 0
    for stepper in (disturbed, calm):
        assert counted(stepper, batch(2))
    if (
        precision != "fp16"
    ):  # there the loss scale has been halved, and so gradients round otherwise
        assert largest_difference(copied(disturbed), copied(calm)) == 0
        assert calm.ema is not None
        assert disturbed.ema is not None
        averages = disturbed.ema.state_dict(), calm.ema.state_dict()
        assert largest_difference(*averages) == 0
        assert averages[0]["n_averaged"] == 2


def test_half_is_float16_throughout() -> None:
    """What small steps are lost in: 1 + 2⁻¹² is 1 there."""
    stepper = Stepper(network(), recipe(precision="half", ema=0.5), ALONE)
    assert counted(stepper, batch())
    kept = [*stepper.network.state_dict().values(), *stepper.ema.module.state_dict().values()]  # type: ignore[union-attr]
    kept += [v for state in stepper.optimizer.state.values() for v in state.values()]
    assert {v.dtype for v in kept if v.is_floating_point()} == {torch.float16}
    assert not stepper.scaler.enabled
    bn = next(m for m in stepper.network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    with torch.no_grad():
        bn.weight.fill_(1.0)
    assert bn.weight.grad is not None
    bn.weight.grad.fill_(2.0**-12)
    stepper.optimizer.param_groups[0].update(lr=1.0, momentum=0.0, weight_decay=0.0)
    stepper.optimizer.step()
    assert (bn.weight == 1).all()


def test_float16_overflow_halves_the_scale_until_steps_count() -> None:
    stepper = Stepper(network(), recipe(precision="fp16"), ALONE)
    state = stepper.scaler.state_dict()
    stepper.scaler.load_state_dict({**state, "scale": torch.tensor(2.0**40)})
    skipped = 0
    while not counted(stepper, batch()):
        skipped += 1
        assert skipped < 40
    assert skipped > 5
    assert stepper.scaler.scale == 2.0 ** (40 - skipped)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars", "lamb"])
def test_no_optimiser_moves_when_its_first_step_does_not_count(name: str) -> None:
    """Their momenta do not exist by then, or are not initialised."""
    settings = Optimizer(name=name, lr=0.1, clip_norm=1.0)
    one, other = (
        Stepper(network(), Recipe(model="any", epochs=1, batch_size=12, optimizer=settings), ALONE)
        for _ in "ab"
    )
    inputs, targets = batch(1)
    before = copied(one)
    for _ in range(2):
        assert not counted(one, (inputs * float("nan"), targets))
    assert largest_difference(copied(one), before) == 0
    for seed in (2, 3):
        assert counted(one, batch(seed))
        assert counted(other, batch(seed))
    if name != "lamb":  # whose own count of steps went on
        assert largest_difference(copied(one), copied(other)) == 0


def test_float16_gradients_with_a_norm_beyond_its_range_count() -> None:
    """65,504 is the largest number of float16, not of a norm; and they are clipped by it."""
    settings = Recipe(
        model="any", epochs=1, batch_size=12, precision="half",
        optimizer=Optimizer(lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=1.0),
    )  # fmt: skip
    stepper = Stepper(nn.Linear(4, 4, bias=False), settings, ALONE)
    weight = stepper.network.weight
    before = weight.detach().clone()
    weight.grad = torch.full_like(weight, 40_000.0)
    stepper._gradients = lambda *_: torch.zeros(())  # type: ignore[method-assign]
    stepper.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign, assignment]
    stepper.step(torch.zeros(1, 4), [], lr=1.0, batch=1)
    assert stepper.read_counters().counted == 1
    assert torch.allclose(before - weight, torch.full_like(weight, 0.25), atol=2e-3)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("sgd", "fp32"), ("sgd", "fp16"), ("sgd", "half"), ("adamw", "fp16"), ("lars", "half")],
)
def test_a_rehearsed_step_changes_nothing(name: str, precision: str) -> None:
    """Neither at the start nor between two steps: training goes on as if it had not been."""
    settings = Recipe(
        model="any", epochs=1, batch_size=12, precision=precision, ema=0.5,
        optimizer=Optimizer(name=name, lr=0.05),
    )  # fmt: skip
    one, other = (Stepper(network(), settings, ALONE) for _ in "ab")
    for seed in range(3):
        one.rehearse(*batch(7))
        for stepper in (one, other):
            stepper.network.train()
            stepper.step(*batch(seed), lr=0.05, batch=12)
    assert one.read_counters() == other.read_counters()
    assert largest_difference(copied(one), copied(other)) == 0
    assert one.ema is not None
    assert other.ema is not None
    assert largest_difference(one.ema.state_dict(), other.ema.state_dict()) == 0
    assert one.scaler.scale == other.scaler.scale


@pytest.mark.parametrize(("first", "then"), [("bf16", "fp16"), ("fp16", "bf16")])
def test_a_run_goes_on_in_another_precision(first: str, then: str) -> None:
    """As where the next machine's GPU has no bfloat16: the loss scale has a state in any case."""
    before = Stepper(network(), recipe(precision=first, ema=0.5), ALONE)
    assert counted(before, batch())
    after = Stepper(network(), recipe(precision=then, ema=0.5), ALONE)
    after.load_state(before.state())
    assert largest_difference(copied(after), copied(before)) == 0
    assert counted(after, batch(1))


def test_counters_tell_of_the_steps_since_they_were_read_and_of_the_run() -> None:
    stepper = Stepper(network(), recipe(), ALONE)
    inputs, targets = batch()
    bad = (inputs * float("nan"), targets)
    for part in (bad, (inputs, targets), bad, bad, bad, (inputs, targets), bad):
        stepper.step(*part, lr=0.0, batch=12)
    found = stepper.read_counters()
    assert (found.steps, found.counted, found.skipped) == (7, 2, 5)
    assert (found.longest, found.in_a_row) == (3, 1)
    other = Stepper(network(), recipe(), ALONE)
    other.load_state(stepper.state())
    for each in (stepper, other):
        each.step(*bad, lr=0.0, batch=12)
        found = each.read_counters()
        assert (found.steps, found.counted, found.skipped, found.loss) == (1, 0, 6, 0)
        assert (found.longest, found.in_a_row) == (2, 2)


@pytest.mark.parametrize("size", [1, 4, 5, 12, 100])
def test_micro_batches_add_up_to_the_batch(size: int) -> None:
    """Also uneven ones; of a network without batch norm."""
    whole = Stepper(network("fc3"), recipe(), ALONE)
    parts = Stepper(network("fc3"), recipe(micro_batch=size), ALONE)
    for seed in range(3):
        for stepper in (whole, parts):
            stepper.step(*batch(seed), lr=0.1, batch=12)
        losses = [stepper.read_counters().loss for stepper in (whole, parts)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert largest_difference(copied(whole), copied(parts)) < 1e-5


def test_a_step_is_torchs_own() -> None:
    """The same as the plain lines that one would write."""
    stepper, plain = Stepper(network(), recipe(label_smoothing=0.1), ALONE), network()
    sgd = torch.optim.SGD(plain.parameters(), 0.05, 0.9, weight_decay=1e-3, nesterov=True)
    for seed in range(3):
        inputs, targets = batch(seed)
        stepper.step(inputs, targets, lr=0.05, batch=12)
        sgd.zero_grad()
        logits = plain(inputs)
        loss = nn.CrossEntropyLoss(label_smoothing=0.1)
        torch.autograd.backward(sum(w * loss(logits, labels) for labels, w in targets))  # type: ignore[arg-type]
        sgd.step()
    assert largest_difference(copied(stepper), plain.state_dict()) < 1e-5


def test_averaged_weights_follow_their_decay_and_are_those_evaluated() -> None:
    stepper = Stepper(network(), recipe(ema=0.8), ALONE)
    expected: dict[str, Tensor] = {}
    for seed in range(3):
        stepper.step(*batch(seed), lr=0.1, batch=12)
        now = {name: value.double() for name, value in copied(stepper).items()}
        expected = {n: 0.8 * expected[n] + 0.2 * now[n] if expected else now[n] for n in now}
    found = stepper.evaluated().state_dict()
    floats = {name: value for name, value in found.items() if value.is_floating_point()}
    assert len(floats) > 20
    assert largest_difference(floats, expected) < 1e-5
    assert not stepper.evaluated().training


def test_a_torchvision_file_starts_a_network_and_what_was_refitted_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A 1000-class ResNet-18 for 224 px, into one for 56 px and 5 classes: all but stem and
    head are the same; a smooth image is answered by the stem as before.
    """
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    caplog.set_level("INFO")
    for channels in (3, 1):
        ours = models.build("resnet18", classes=5, channels=channels, size=56)
        head = ours.fc.weight.clone()  # type: ignore[union-attr, operator]
        pretrained.start_from(ours, tmp_path / "resnet18.pth")
        own, other = ours.state_dict(), theirs.state_dict()
        same = [name for name in own if own[name].equal(other[name])]
        assert set(own) - set(same) == {"conv1.weight", "fc.weight", "fc.bias"}
        assert ours.fc.weight.equal(head)  # type: ignore[union-attr, operator]
        flat = own["conv1.weight"].sum(dim=(1, 2, 3))
        assert torch.allclose(flat, other["conv1.weight"].sum(dim=(1, 2, 3)), atol=1e-4)
    assert "conv1.weight is refitted, 64×3×7×7 there, 64×3×3×3 here" in caplog.text
    assert "fc.weight starts anew, 1000×512 there, 5×512 here" in caplog.text


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(ConfigError, match=r"recipe's network: it has besides layer1\.2"):
        pretrained.start_from(models.build("resnet18", classes=5, channels=3, size=56), path)
    torch.save({"model": {"a.weight": torch.zeros(2)}}, path)
    with pytest.raises(ConfigError, match=r"it lacks conv1\.weight"):
        pretrained.start_from(network(), path)
    torch.save([1, 2], path)
    with pytest.raises(DamagedError, match="no state dict"):
        pretrained.start_from(network(), path)
    path.write_bytes(b"garbage")
    with pytest.raises(DamagedError, match="cannot be loaded as plain tensors"):
        pretrained.start_from(network(), path)


def test_intervals_are_steps_or_time() -> None:
    assert Interval.parse("500") == Interval(steps=500)
    assert [Interval.parse(t).seconds for t in ("30s", "5m", "2h")] == [30, 300, 7200]
    for wrong in ("", "0", "5 m", "m", "-3", "1.5h"):
        with pytest.raises(ConfigError, match="--save-every"):
            Interval.parse(wrong)
    due = Due(Interval(steps=4))
    assert [step for step in range(1, 13) if due.after(step)] == [4, 8, 12]
    late = Due(Interval(seconds=0.0))
    assert late.after(1)


def test_jobs_that_share_a_device_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECTRAL_JOBS_PER_DEVICE", raising=False)
    whole = free_memory(CPU)
    monkeypatch.setenv("SPECTRAL_JOBS_PER_DEVICE", "4")
    assert 0.8 < 4 * free_memory(CPU) / whole < 1.25


def test_contradictory_augmentation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment\.ricap"):
        Augment(ricap=0.3, mixup=0.2)
