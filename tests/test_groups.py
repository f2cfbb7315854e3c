"""Several planes of the same images for one network: read in lock-step, moved alike."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, DamagedError
from pipeline.format import manifest
from pipeline.format.beton import HEADER, BetonReader
from pipeline.planes.splitter import Splitter
from pipeline.preparation import preparation
from tests.conftest import RAW, SUB4
from trainer import models
from trainer.data.feed import Plan, feed
from trainer.data.groups import PlaneGroupLoader, open_split
from trainer.data.loader import ShardLoader
from trainer.data.normalise import Normaliser
from trainer.data.selection import Prepared
from trainer.methods.augment import Augmenter
from trainer.process.stop import StopRequest
from trainer.process.world import World
from trainer.recipes.recipe import Augment, Optimizer, Recipe
from trainer.run.evaluate import Predictor, evaluate
from trainer.run.step import Stepper

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def prepared(root: Path, folder: str = SUB4) -> Prepared:
    return Prepared(root / folder, manifest.load(root / folder))


@pytest.mark.parametrize("kind", ["stream", "resident"])
@pytest.mark.parametrize("folder", [SUB4, RAW])
def test_planes_of_a_sample_meet_in_one_batch(data: Path, folder: str, kind: str) -> None:
    """In the order asked for, twice over; the last batch is partial."""
    source, ks = prepared(data, folder), (2, 0, 3)
    group = PlaneGroupLoader(source, "train", ks, batch_size=16, device=CPU)
    singles = [ShardLoader(source, "train", k, batch_size=16, device=CPU) for k in ks]
    batches = feed(group, kind, False)
    assert batches.kind == kind
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(group.samples)[:70]
        found = [(v.clone(), y.clone()) for v, y in batches.batches(order)]
        assert [len(y) for _, y in found] == [16, 16, 16, 16, 6]
        for place, single in enumerate(singles):
            for (values, labels), (expected, truth) in zip(
                found, single.batches(order), strict=True
            ):
                assert values[:, place].equal(expected)
                assert labels.equal(truth)


def test_shards_of_other_samples_are_refused(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / SUB4, tmp_path / "copy"))
    path = copy / "train" / "shard_01.beton"
    with BetonReader(path) as reader:
        at = HEADER.itemsize + reader._descriptions.nbytes + 5 * reader.rows.itemsize
        at += reader.rows.dtype.fields["f1"][1]
        label = int(reader.labels[5])
    content = bytearray(path.read_bytes())
    assert content[at] == label
    content[at] = (label + 1) % 3
    path.write_bytes(content)
    source = Prepared(copy, manifest.load(copy))
    with pytest.raises(DamagedError, match=r"shard_01\.beton does not hold the samples of"):
        PlaneGroupLoader(source, "train", (0, 1), batch_size=16, device=CPU)


@pytest.mark.parametrize("ks", [(1,), (1, 1), ()])
def test_a_group_is_of_several_planes(data: Path, ks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="two planes or more, each once"):
        PlaneGroupLoader(prepared(data), "train", ks, batch_size=16, device=CPU)


def test_each_plane_of_a_group_is_normalised_as_it_is_alone(data: Path) -> None:
    found = prepared(data).manifest
    values = torch.randint(-127, 128, (5, 3, 3, 16, 16), dtype=torch.int8)
    alone = [Normaliser(found, k)(values[:, i]) for i, k in enumerate((2, 0, 3))]
    group = Normaliser(found, (2, 0, 3))
    assert group.planes == 3
    for given in (values, values.flatten(1, 2)):
        assert torch.allclose(group(given), torch.cat(alone, dim=1), atol=1e-5)


@pytest.mark.parametrize("flip", ["horizontal_flip", "vertical_flip", "rotate180"])
def test_flipping_a_group_is_flipping_the_image(flip: str) -> None:
    """Each plane with its sign; shifted alike; of `dct` only where it is exact on all of them."""
    prep = preparation("any", 9, size=15, transform="dct2")
    splitter, clipped = Splitter(prep), np.zeros(9, np.int64)
    image = np.random.default_rng(0).integers(0, 256, (15, 15, 3), dtype=np.uint8)
    axes = {"horizontal_flip": (1,), "vertical_flip": (0,), "rotate180": (0, 1)}[flip]
    planes, mirrored = splitter.empty(), splitter.empty()
    splitter.split(image, planes, clipped)
    splitter.split(np.ascontiguousarray(np.flip(image, axes)), mirrored, clipped)
    group = torch.from_numpy(planes)[None].expand(64, -1, -1, -1, -1)
    augment = Augment(**{"horizontal_flip": False, flip: True})  # type: ignore[arg-type]
    run = Augmenter(augment, prep, tuple(range(9)), 0, lambda x: x, 64, slice(0, 64))
    found, _ = run(group, torch.zeros(64, dtype=torch.int64), 0, 0)
    kinds = [torch.from_numpy(values).flatten(0, 1) for values in (planes, mirrored)]
    seen = [sum(int(each.equal(kind)) for each in found) for kind in kinds]
    assert sum(seen) == 64
    assert min(seen) > 16
    other = preparation("any", 9, size=15, transform="dct")
    run = Augmenter(augment, other, (0, 1), 0, lambda x: x, 64, slice(0, 64))
    found, _ = run(group[:, :2], torch.zeros(64, dtype=torch.int64), 0, 0)
    assert found.equal(group[:, :2].flatten(1, 2)) == (flip != "rotate180")


def test_one_network_learns_from_a_group(data: Path) -> None:
    """By the parts that training is made of: one feed, one normaliser, one predictor."""
    source, ks = prepared(data), (0, 1, 3)
    plan = Plan(samples=90, batch_size=16, seed=1, world=ALONE)
    recipe = Recipe(model="any", epochs=1, batch_size=16, optimizer=Optimizer(lr=0.05))
    torch.manual_seed(0)
    network = models.build("cifar-resnet8", classes=3, channels=9, size=16, width=8)
    stepper, normaliser = Stepper(network, recipe, ALONE), Normaliser(source.manifest, ks)
    prep = source.manifest.preparation
    augment = Augment(shift=2, cutmix=1.0, erasing=0.25)
    augmenter = Augmenter(augment, prep, ks, 0, normaliser, plan.batch, plan.share)
    group = open_split(source, "train", ks, batch_size=16, device=CPU)
    losses = []
    for epoch in range(6):
        stepper.network.train()
        for step, (values, labels) in enumerate(group.batches(plan.order(epoch))):
            inputs, targets = augmenter(values, labels, epoch, epoch * plan.steps + step)
            assert inputs.shape == (16, 9, 16, 16)
            stepper.step(inputs, targets, 0.05, 16)
        losses.append(stepper.read_counters().loss)
    assert losses[-1] < losses[0]
    predictor = Predictor(stepper.evaluated(), normaliser).eval()
    val = open_split(source, "val", ks, batch_size=16, device=CPU)
    found = evaluate(predictor, val, ALONE, StopRequest())
    assert found is not None
    assert found.samples == 30
    assert found.top1 > 0.5
