"""Augmentation and mixing: what they compute, and that draws depend on nothing else."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline import transforms
from pipeline.choices import TRANSFORMS
from pipeline.planes.splitter import Splitter
from pipeline.preparation import Preparation, preparation
from trainer.methods import mixing
from trainer.methods.augment import Augmenter, erase, mirror, sides, translate
from trainer.methods.draws import BLOCK
from trainer.methods.loss import batch_loss
from trainer.recipes.recipe import Augment, Recipe

DIMS = {"horizontal": (3,), "vertical": (2,), "rotate180": (2, 3)}
ALL = Augment(horizontal_flip=True, vertical_flip=True, rotate180=True, shift=2, cutout=6,
              erasing=0.5, mixup=0.2, cutmix=1.0)  # fmt: skip


def augmenter(
    augment: Augment, batch: int = 16, share: slice | None = None, k: int = 0, seed: int = 5,
    prep: Preparation | None = None,
) -> Augmenter:  # fmt: skip
    prep = prep or preparation("any", 4, size=32)
    whole = slice(0, batch)
    return Augmenter(augment, prep, k, seed, torch.Tensor.float, batch, share or whole)


def batch(size: int = 16, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    values = rng.integers(-127, 128, (size, 3, side, side)).astype(np.int8)
    return torch.from_numpy(values), torch.arange(size)


def test_translate_moves_and_fills_with_mid_grey() -> None:
    values = torch.arange(1.0, 33.0).reshape(2, 1, 4, 4)
    moved = translate(values, torch.tensor([[1, 0], [0, -2]]), 2)
    assert (moved[0, 0, 1:] == values[0, 0, :-1]).all()
    assert (moved[0, 0, 0] == 0).all()
    assert (moved[1, 0, :, :2] == values[1, 0, :, 2:]).all()
    assert (moved[1, 0, :, 2:] == 0).all()
    assert (translate(values, torch.zeros(2, 2, dtype=torch.int64), 1) == values).all()


@pytest.mark.parametrize("flip", sorted(DIMS))
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_flipping_a_plane_is_flipping_the_image(transform: str, flip: str) -> None:
    """Bit for bit, for every plane on which a recipe's flip acts; on others it does nothing."""
    prep = preparation("any", 9, size=15, transform=transform)
    splitter = Splitter(prep)
    image = np.random.default_rng(0).integers(0, 256, (15, 15, 3), dtype=np.uint8)
    clipped = np.zeros(9, np.int64)
    planes, mirrored = splitter.empty(), splitter.empty()
    splitter.split(image, planes, clipped)
    turned = np.flip(image, [dim - 2 for dim in DIMS[flip]])
    splitter.split(np.ascontiguousarray(turned), mirrored, clipped)
    name = flip if flip == "rotate180" else f"{flip}_flip"
    wanted = Augment(**{"horizontal_flip": False, name: True})
    for k in range(9):
        (sign,) = set(augmenter(wanted, prep=prep, k=k).signs[flip])
        values = torch.from_numpy(planes[k : k + 1]).float()
        if sign:
            signs = torch.full((3, 1, 1), sign)
            flipped = mirror(values, torch.tensor([True]), DIMS[flip], signs)
            assert (flipped.numpy()[0] == mirrored[k]).all()
        else:
            assert transforms.flip_sign(3, transform, k, flip) == 0
            assert not any(
                np.array_equal(s * np.flip(planes[k], [d - 1 for d in DIMS[flip]]), mirrored[k])
                for s in (1, -1)
            )
    assert not augmenter(Augment(horizontal_flip=False)).signs


def test_augmentation_depends_on_seed_epoch_and_step_alone() -> None:
    values, labels = batch()
    run = augmenter(ALL)
    first, targets = run(values, labels, 3, 7)
    torch.manual_seed(123)
    np.random.seed(99)  # noqa: NPY002 - the point is that global state does not matter
    again, same = run(values, labels, 3, 7)
    assert (again == first).all()
    assert [w for _, w in same] == [w for _, w in targets]
    for seed, epoch, step in ((5, 3, 8), (5, 3, 7 + BLOCK), (5, 4, 7), (6, 3, 7)):
        other, _ = augmenter(ALL, seed=seed)(values, labels, epoch, step)
        assert (other != first).any()


@pytest.mark.parametrize("mix", [{}, {"mixup": 0.3}, {"cutmix": 1.0}, {"ricap": 0.3}])
def test_processes_together_augment_as_one_would(mix: dict[str, float]) -> None:
    """Shares of whole groups of four: the same pixels, labels and weights."""
    augment = Augment(shift=1, cutout=4, erasing=0.5, **mix)
    values, labels = batch(20)
    for step in range(5):
        whole, targets = augmenter(augment, 20)(values, labels, 1, step)
        shares = [slice(0, 8), slice(8, 12), slice(12, 20)]
        parts = [augmenter(augment, 20, s)(values[s], labels[s], 1, step) for s in shares]
        assert torch.equal(torch.cat([inputs for inputs, _ in parts]), whole)
        for turn, (expected, weight) in enumerate(targets):
            assert torch.cat([found[turn][0] for _, found in parts]).equal(expected)
            assert all(found[turn][1] == weight for _, found in parts)


def test_cutout_squares_lie_anywhere_and_are_clipped_at_the_border() -> None:
    """Centres are uniform over the plane, so that squares hang over each border."""
    run = augmenter(Augment(horizontal_flip=False, cutout=6), batch=4000)
    boxes = run.draws(0, 0).boxes[0, :, 0]
    assert (boxes[:, 1] - boxes[:, 0] == 6).all()
    assert (boxes[:, 3] - boxes[:, 2] == 6).all()
    assert (boxes[:, 0].min(), boxes[:, 0].max()) == (-3, 12)
    assert abs(np.bincount(boxes[:, 2] + 3, minlength=16) / 4000 - 1 / 16).max() < 0.02
    values = torch.ones(2, 3, 16, 16)
    erased = erase(values, *sides(torch.tensor([[-3, 3, 12, 18], [0, 0, 0, 0]]), (16, 16)))
    assert (erased[0, :, :3, 12:] == 0).all()
    assert erased[0].sum() == 3 * (256 - 3 * 4)
    assert (erased[1] == 1).all()


def test_random_erasing_has_the_areas_and_ratios_of_its_paper() -> None:
    """As torchvision's RandomErasing draws them: over many draws the means agree."""
    from torchvision.transforms import RandomErasing

    run = augmenter(Augment(erasing=0.5), 20000, prep=preparation("any", 4, size=112))
    boxes = run.draws(0, 0).boxes[0, :, 0]
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    chosen = height > 0
    assert abs(chosen.mean() - 0.5) < 0.02
    assert boxes[chosen].min() >= 0
    assert (boxes[chosen][:, [1, 3]] <= 56).all()
    area = (height * width)[chosen] / 56**2
    torch.manual_seed(0)
    image = torch.zeros(3, 56, 56)
    theirs = np.array(
        [RandomErasing.get_params(image, (0.02, 0.4), (0.3, 1 / 0.3))[2:4] for _ in range(5000)]
    )
    assert abs(area.mean() - theirs.prod(axis=1).mean() / 56**2) < 0.01
    ratio = np.log(height[chosen] / width[chosen])
    assert abs(ratio.std() - np.log(theirs[:, 0] / theirs[:, 1]).std()) < 0.03


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def partner(size: int) -> mixing.Partner:
    return lambda turn: mixing.partners(size, turn)


def test_mixup_weighs_images_as_it_weighs_labels() -> None:
    values, labels = batch(8)
    mixed, [(own, w), (other, rest)] = mixing.Mixup.draw(0.4, rng(3))(
        values.float(), labels, partner(8)
    )
    assert w + rest == pytest.approx(1)
    assert own.equal(labels)
    assert other.tolist() == [1, 2, 3, 0, 5, 6, 7, 4]
    assert torch.allclose(mixed, w * values.float() + rest * values[other].float(), atol=1e-4)


def test_cutmix_weighs_by_the_box_that_is_left_after_clipping() -> None:
    values = torch.arange(8.0)[:, None, None, None].expand(8, 3, 20, 20)
    clipped = 0
    for seed in range(50):
        drawn = rng(seed).beta(1.0, 1.0)
        mixed, [(_, w), (other, rest)] = mixing.Cutmix.draw(1.0, (20, 20), rng(seed))(
            values, torch.arange(8), partner(8)
        )
        taken = (mixed[0, 0] == other[0]).float().mean().item()
        assert taken == pytest.approx(rest)
        assert w + rest == pytest.approx(1)
        clipped += abs(rest - (1 - drawn)) > 0.1
    assert clipped > 5


def test_ricap_weighs_four_images_by_their_areas() -> None:
    values = torch.arange(8.0)[:, None, None, None].expand(8, 3, 20, 20)
    for seed in range(20):
        mixed, targets = mixing.Ricap.draw(0.3, (20, 20), rng(seed))(
            values, torch.arange(8), partner(8)
        )
        assert sum(weight for _, weight in targets) == pytest.approx(1)
        assert len({int(labels[0]) for labels, _ in targets}) == 4
        for labels, weight in targets:
            assert (mixed[5, 1] == labels[5]).float().mean().item() == pytest.approx(weight)


def test_dual_cutout_gives_two_views_with_a_square_each_and_weighs_their_difference() -> None:
    """½(CE₁ + CE₂) + α·MSE of the logits, summed over the images."""
    values, labels = batch(8)
    run = augmenter(Augment(horizontal_flip=False, cutout=6, dual_cutout=0.1), batch=8)
    views, targets = run(values, labels, 0, 0)
    assert views.shape == (8, 2, 3, 16, 16)
    boxes = torch.from_numpy(run.draws(0, 0).boxes[0])
    for view in (0, 1):
        assert views[:, view].equal(erase(values.float(), *sides(boxes[:, view], (16, 16))))
    assert not views[:, 0].equal(views[:, 1])
    logits = torch.randn(8, 2, 8, generator=torch.Generator().manual_seed(1))
    settings = recipe(augment=Augment(cutout=6, dual_cutout=0.1))
    expected = 4 * sum(F.cross_entropy(logits[:, v], labels) for v in (0, 1))
    expected = expected + 0.1 * 8 * F.mse_loss(logits[:, 0], logits[:, 1])
    assert batch_loss(logits, targets, settings).item() == pytest.approx(float(expected))


def recipe(**values: object) -> Recipe:
    return Recipe(model="any", epochs=1, batch_size=12, **values)  # type: ignore[arg-type]


def test_binary_cross_entropy_aims_at_the_mixed_labels() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    targets = [(torch.tensor([0, 1, 2, 0]), 0.75), (torch.tensor([1, 1, 0, 2]), 0.25)]
    aims = torch.tensor([[0.75, 0.25, 0], [0, 1, 0], [0.25, 0, 0.75], [0.75, 0, 0.25]])
    for smoothing in (0.0, 0.3):
        wanted = aims * (1 - smoothing) + smoothing / 3
        expected = 4 * F.binary_cross_entropy_with_logits(logits, wanted)
        settings = recipe(loss="bce", label_smoothing=smoothing)
        assert batch_loss(logits, targets, settings).item() == pytest.approx(expected.item())


def test_the_loss_is_the_cross_entropy_of_the_mixed_distribution() -> None:
    logits, labels = (
        torch.randn(6, 5, generator=torch.Generator().manual_seed(1)),
        torch.arange(6) % 5,
    )
    other = labels.roll(1)
    targets = [(labels, 0.7), (other, 0.3)]
    dense = 0.7 * F.one_hot(labels, 5) + 0.3 * F.one_hot(other, 5)
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(logits, dense, label_smoothing=smoothing, reduction="sum")
        found = batch_loss(logits, targets, recipe(label_smoothing=smoothing))
        assert found.item() == pytest.approx(expected.item())
