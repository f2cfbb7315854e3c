"""What only a GPU can show: `make gpu`, on a machine that has one."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.format import manifest
from tests.conftest import RAW, SUB4, WHOLE
from tests.test_no_waiting import AUGMENTS, BATCH, METHODS, augmenter, batch, network, recipe
from trainer.data.feed import feed
from trainer.data.groups import PlaneGroupLoader
from trainer.data.loader import ShardLoader
from trainer.data.normalise import Normaliser
from trainer.data.selection import Prepared
from trainer.data.stock import Loader
from trainer.methods.draws import BLOCK
from trainer.process.world import World
from trainer.run.evaluate import Predictor
from trainer.run.step import Stepper

pytestmark = pytest.mark.gpu
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def prepared(root: Path, folder: str) -> Prepared:
    return Prepared(root / folder, manifest.load(root / folder))


def seen(batches: Iterable[tuple[Tensor, Tensor]], behind: Tensor | None = None) -> Tensor:
    """(n, values and label), on the CPU; with `behind` the device lags far behind the loader."""
    found = []
    for values, labels in batches:
        if behind is not None:
            for _ in range(10):
                torch.mm(behind, behind)
        found.append(torch.cat([values.flatten(1).long(), labels[:, None]], dim=1))
    return torch.cat(found).cpu()


@pytest.mark.parametrize("folder", [SUB4, RAW, WHOLE])
def test_the_device_sees_what_lies_on_disk(data: Path, folder: str) -> None:
    """FFCV decodes into the same pinned buffers again and again: not before they are copied."""
    source = prepared(data, folder)
    order = np.random.default_rng(1).permutation(90)
    expected = seen(ShardLoader(source, "train", 0, batch_size=4, device=CPU).batches(order))
    behind = torch.randn(4096, 4096, device=CUDA).bfloat16()
    loader = ShardLoader(source, "train", 0, batch_size=4, device=CUDA)
    for _ in range(5):
        assert seen(loader.batches(order), behind).equal(expected)
    assert seen(feed(loader, "resident", False).batches(order), behind).equal(expected)


def test_memory_that_is_filled_late_does_not_overwrite_the_first_batches(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's deterministic mode fills new memory by a kernel that FFCV's copies do not wait for;
    here whatever is launched while an iterator is made comes a tenth of a second late.
    """
    source, order = prepared(data, SUB4), np.arange(90)
    expected = seen(ShardLoader(source, "train", 0, batch_size=4, device=CPU).batches(order))
    loader, make = ShardLoader(source, "train", 0, batch_size=4, device=CUDA), Loader.__iter__

    def busy(self: Any) -> Any:
        torch.cuda._sleep(200_000_000)  # cycles
        return make(self)

    monkeypatch.setattr(Loader, "__iter__", busy)
    torch.use_deterministic_algorithms(True)
    try:
        assert seen(loader.batches(order)).equal(expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_groups_of_planes_see_what_lies_on_disk(data: Path) -> None:
    source, ks = prepared(data, SUB4), (0, 2, 3)
    order = np.random.default_rng(1).permutation(90)
    on_cpu = PlaneGroupLoader(source, "train", ks, batch_size=4, device=CPU)
    expected = seen(on_cpu.batches(order))
    behind = torch.randn(4096, 4096, device=CUDA).bfloat16()
    loader = PlaneGroupLoader(source, "train", ks, batch_size=4, device=CUDA)
    assert seen(loader.batches(order), behind).equal(expected)
    assert seen(feed(loader, "resident", False).batches(order), behind).equal(expected)


def test_evaluation_answers_for_what_lies_on_disk(data: Path) -> None:
    """Its batches go by faster than the device follows; in float32, but for rounding."""
    source = prepared(data, SUB4)
    order = np.random.default_rng(1).permutation(90)
    answers = []
    for device in (CPU, CUDA):
        torch.manual_seed(0)
        normaliser = Normaliser(source.manifest, 1)
        predictor = Predictor(network(), normaliser).to(device).eval()
        loader = ShardLoader(source, "train", 1, batch_size=4, device=device)
        with torch.inference_mode():
            found = [predictor(values) for values, _ in loader.batches(order)]
        answers.append(torch.cat(found).cpu())
    assert (answers[0] - answers[1]).abs().max() < 0.05 * answers[0].std()


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


CASES: dict[str, dict[str, Any]] = {
    **METHODS,
    **{name: {"augment": augment} for name, augment in AUGMENTS.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_for_the_device(case: str) -> None:
    """After the first ones, which set up libraries; a new block of draws included."""
    settings = recipe(**CASES[case])
    stepper, run = Stepper(network(), settings, World(0, 1, CUDA)), augmenter(settings.augment)
    values, labels = batch(CUDA)
    for step in (0, 1, 2, BLOCK):
        inputs, targets = run(values, labels, 0, step)
        stepper.step(inputs, targets, 0.1, BATCH)
    with no_waiting():
        for step in (BLOCK + 1, 2 * BLOCK):
            inputs, targets = run(values, labels, 0, step)
            stepper.step(inputs, targets, 0.1, BATCH)
    assert stepper.read_counters().steps == 6
