"""No step of training reads from the device: the host would wait for it, in each of them.

Tensors that hold no values say so: whatever would read one raises. On such tensors of a GPU, a
tensor that was left on the CPU is found too, as an index as well, and a copy that the host would
wait for (forward alone: backward needs a real device).
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import trainer.run.average
from pipeline.preparation import preparation
from trainer import models
from trainer.methods.augment import Augmenter
from trainer.methods.draws import BLOCK
from trainer.methods.loss import batch_loss
from trainer.process.world import World
from trainer.recipes.recipe import Augment, Optimizer, Recipe
from trainer.run.step import Stepper

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BATCH, SIDE = 12, 16
ALL = Augment(
    vertical_flip=True, rotate180=True, shift=2, cutout=6, erasing=0.5, mixup=0.2, cutmix=1.0
)
AUGMENTS = {
    "plain": Augment(),
    "all": ALL,
    "mixup": Augment(mixup=0.2),
    "cutmix": Augment(cutmix=1.0),
    "ricap": Augment(ricap=0.3),
    "dual_cutout": Augment(cutout=6, dual_cutout=0.1, erasing=0.5),
    "randaugment": Augment(policy="randaugment", policy_operations=3),
    "trivialaugment": Augment(policy="trivialaugment"),
}
METHODS: dict[str, dict[str, Any]] = {
    "ema": {"ema": 0.9},
    "micro_batches": {"micro_batch": 5},
    "bce": {"loss": "bce", "label_smoothing": 0.1},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "half": {"precision": "half"},
    **{
        name: {"optimizer": Optimizer(name=name, lr=0.1, clip_norm=clip, decay_all=False)}
        for name, clip in (("sgd", 1.0), ("adam", 0.0), ("adamw", 1.0), ("lars", 0.0), ("lamb", 0))
    },
}


class FakeNormaliser(nn.Module):
    """That of a plane, as far as shapes go."""

    def forward(self, values: Tensor) -> Tensor:
        return values.float()


def recipe(**values: Any) -> Recipe:
    return Recipe(model="any", epochs=1, batch_size=BATCH, **values)


def augmenter(augment: Augment) -> Augmenter:
    prep = preparation("any", 1, size=SIDE)
    return Augmenter(augment, prep, 0, 0, FakeNormaliser(), BATCH, slice(0, BATCH))


def network(kind: str = "cifar-resnet8") -> nn.Module:
    return models.build(kind, classes=4, channels=3, size=SIDE, width=8)


def batch(device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.int8, device=device)
    return values, torch.zeros(BATCH, dtype=torch.int64, device=device)


def replaced(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """`Module._apply`, which `to` calls, where it cannot exchange parameters without values."""
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(function(parameter.detach()))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else function(buffer)
    return self


class OnOneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, and copies that are waited for.

    torch itself would take an index from the CPU, copying it: the host waits for that.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        assert len(devices) < 2, f"{func} of tensors of {devices}"
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
            moved = devices and devices != {torch.device(kwargs["device"]).type}
            assert not moved or kwargs.get("non_blocking"), f"{func} is waited for"
        return func(*args, **kwargs)


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is made from here on has a shape, a type and a device alone; what is drawn on the
    host is turned into it where it goes to the device.
    """
    monkeypatch.setattr(nn.Module, "_apply", replaced)
    monkeypatch.setattr(trainer.run.average, "deepcopy", lambda _: network())  # cannot copy them
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def three_steps(settings: Recipe) -> Stepper:
    """Of which the first makes the optimiser's state, and the last begins a block of draws."""
    stepper = Stepper(network(), settings, World(0, 1, CPU))
    run = augmenter(settings.augment)
    for step in (0, 1, BLOCK):
        inputs, targets = run(*batch(CPU), 0, step)
        stepper.step(inputs, targets, 0.1, BATCH)
    return stepper


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_each_method_reads_nothing(method: str) -> None:
    stepper = three_steps(recipe(**METHODS[method]))
    with pytest.raises(DataDependentOutputException):
        stepper.read_counters()


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_step_with_each_augmentation_reads_nothing(augment: str) -> None:
    three_steps(recipe(augment=AUGMENTS[augment]))


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize("read", [Tensor.item, Tensor.tolist, Tensor.numpy, bool, float])
def test_a_read_would_be_seen(read: Callable[[Tensor], object]) -> None:
    with pytest.raises((DataDependentOutputException, RuntimeError)):
        read(torch.zeros(()) + 1)


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize("augment", AUGMENTS)
def test_augmentation_and_forward_stay_on_the_device(augment: str) -> None:
    """Whose tensors do not mix with the CPU's."""
    settings = recipe(augment=AUGMENTS[augment])
    run, forward = augmenter(AUGMENTS[augment]), network().to(CUDA)
    with OnOneDevice(), torch.no_grad():
        for step in (0, BLOCK):
            inputs, targets = run(*batch(CUDA), 0, step)
            logits = forward(inputs.flatten(0, -4)).view(*inputs.shape[:-3], -1)
            assert batch_loss(logits, targets, settings).device == CUDA


@pytest.mark.usefixtures("without_values")
def test_a_tensor_of_the_cpu_would_be_seen() -> None:
    on_device, on_cpu = torch.zeros(2, device=CUDA), torch.zeros(2, dtype=torch.int64)
    with OnOneDevice():
        with pytest.raises(AssertionError, match="of tensors of"):
            on_device + on_cpu
        with pytest.raises(AssertionError, match="of tensors of"):
            on_device[on_cpu]
        with pytest.raises(AssertionError, match="is waited for"):
            on_cpu.to(CUDA)
        on_cpu.to(CUDA, non_blocking=True)
