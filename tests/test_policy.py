"""Policies on batches: image by image what torchvision's tensor kernels make of them."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.preparation import preparation
from tests.conftest import photograph
from trainer.methods import policy
from trainer.methods.augment import Augmenter
from trainer.methods.draws import BLOCK
from trainer.methods.policy import KINDS, Operations, Policy
from trainer.recipes.recipe import Augment

CPU = torch.device("cpu")
THEIRS = {False: v2.RandAugment(fill=128), True: v2.TrivialAugmentWide(fill=128)}


def images(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    rng = np.random.default_rng(0)
    pixels = [np.asarray(photograph(rng, width, height)) for _ in range(count)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)[:, :channels].contiguous()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (40, 28)])
@pytest.mark.parametrize("trivial", [False, True])
@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_each_operation_is_torchvision_s(
    kind: int, trivial: bool, size: tuple[int, int], channels: int
) -> None:
    """At each magnitude, to either side, in one batch; images of one colour too."""
    table = policy.magnitude_table(trivial, size)[kind]
    magnitudes = np.concatenate([table, -table[1:] if 1 <= kind <= 9 else table[1:]])
    seen = images(len(magnitudes), *size, channels)
    seen[0], seen[1] = 77, 0
    kinds = np.full((1, len(magnitudes), 1), kind)
    parameters = policy.parameters_of(kinds, magnitudes[None, :, None], size)
    found = Policy(Operations(kinds, parameters), CPU).apply(seen, 0)
    their = THEIRS[trivial]
    expected = torch.stack([
        their._apply_image_or_video_transform(
            image, KINDS[kind], float(magnitude), v2.InterpolationMode.NEAREST, their._fill
        )
        for image, magnitude in zip(seen, magnitudes, strict=True)
    ])  # fmt: skip
    wrong = (found != expected).float().mean()
    if KINDS[kind].startswith("Shear"):  # what is half-way between two pixels may go to either
        assert wrong < 1e-3
    elif KINDS[kind] in ("Color", "Contrast", "Sharpness"):  # a sum of two products is cut off
        assert (found.int() - expected.int()).abs().max() <= 1
        assert wrong < 3e-3
    else:
        assert found.equal(expected)
    if kind and (kind, channels) != (KINDS.index("Color"), 1):
        assert not found.equal(seen)


@pytest.mark.parametrize("trivial", [False, True])
def test_magnitudes_are_torchvision_s(trivial: bool) -> None:
    table = policy.magnitude_table(trivial, (40, 28))
    space = THEIRS[trivial]._AUGMENTATION_SPACE
    assert tuple(space) == KINDS
    for kind, (magnitudes, signed) in enumerate(space.values()):
        expected = magnitudes(31, 40, 28)
        assert (table[kind] == (0.0 if expected is None else expected.double().numpy())).all()
        assert signed == (1 <= kind <= 9)


def drawn(name: str, **values: int) -> Operations:
    augment = Augment(policy=name, **values)  # type: ignore[arg-type]
    found = policy.draw_operations(augment, (32, 32), (100, 100), np.random.default_rng(0))
    assert found is not None
    return found


def test_operations_are_drawn_as_torchvision_draws_them() -> None:
    """All as often, signed ones to either side as often; RandAugment at one magnitude."""
    found = drawn("randaugment", policy_operations=3, policy_magnitude=12)
    assert found.kinds.shape == (100, 100, 3)
    shares = np.bincount(found.kinds.ravel(), minlength=14) / found.kinds.size
    assert abs(shares - 1 / 14).max() < 0.005
    bright = found.parameters[found.kinds == KINDS.index("Brightness"), 0]
    values, counts = np.unique(bright, return_counts=True)
    np.testing.assert_allclose(values, [1 - 0.36, 1 + 0.36], rtol=1e-6)
    assert abs(counts[0] / counts.sum() - 0.5) < 0.05
    trivial = drawn("trivialaugment")
    assert trivial.kinds.shape == (100, 100, 1)
    assert len(np.unique(trivial.parameters[trivial.kinds == KINDS.index("Color"), 0])) == 61


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_processes_together_draw_as_one_would(name: str) -> None:
    """Whoever holds the share, and whatever torch's own state, which stays as it is."""
    augment = Augment(horizontal_flip=False, policy=name)
    prep, labels = preparation("any", 1, size=32), torch.arange(12)
    values = (images(12, 32, 32) ^ 128).view(torch.int8)

    def augmented(share: slice) -> Tensor:
        run = Augmenter(augment, prep, 0, 5, lambda x: x.float(), 12, share)
        return run(values[share], labels[share], 2, BLOCK + 9)[0]

    torch.manual_seed(3)
    before = torch.get_rng_state()
    whole = augmented(slice(0, 12))
    assert torch.get_rng_state().equal(before)
    assert whole.equal(torch.cat([augmented(slice(0, 5)), augmented(slice(5, 12))]))
    assert not whole.equal(values.float())
