"""The trainer's pure parts: order of samples, normalisation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.format import manifest
from tests.conftest import RAW, SUB4, WHOLE
from trainer.data.feed import Plan
from trainer.data.normalise import Normaliser
from trainer.data.selection import Prepared, parse_shards
from trainer.process.seeds import mixed_seed
from trainer.process.world import World
from trainer.recipes.recipe import Recipe
from trainer.run.evaluate import metrics
from trainer.run.setup import make_plan


def plan(batch_size: int, seed: int = 0, samples: int = 500, rank: int = 0, size: int = 1) -> Plan:
    world = World(rank, size, torch.device("cpu"))
    return Plan(samples=samples, batch_size=batch_size, seed=seed, world=world)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    """And seed 0 epoch 1 is not seed 1 epoch 0, as it is with FFCV."""
    orders = {(s, e): tuple(plan(50, s).order(e)) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    assert all(sorted(order) == list(range(500)) for order in orders.values())
    assert orders[1, 2][150:] == tuple(plan(50, 1).order(2, first=3))


def test_repeated_images_share_a_batch_but_never_a_group_that_is_mixed() -> None:
    """Each of 16 images four times a batch of 64; as many steps as without repeats."""
    repeated = Plan(samples=500, batch_size=64, seed=1, world=plan(1).world, repeats=4)
    assert repeated.steps == plan(64).steps == 7
    order = repeated.order(3).reshape(7, 64)
    for batch in order:
        found, counts = np.unique(batch, return_counts=True)
        assert (len(found), set(counts)) == (16, {4})
        assert all(len(set(group)) == 4 for group in batch.reshape(16, 4))
    assert len(np.unique(order)) == 7 * 16


@pytest.mark.parametrize(("batch", "size"), [(64, 1), (64, 3), (7, 2), (128, 5), (3, 3), (41, 2)])
def test_processes_share_each_batch_fairly(batch: int, size: int) -> None:
    """Every sample once, none more than a group of four apart."""
    shares = [plan(batch, rank=rank, size=size).share for rank in range(size)]
    covered = [i for share in shares for i in range(batch)[share]]
    assert covered == list(range(batch))
    lengths = [share.stop - share.start for share in shares]
    assert min(lengths) > 0
    assert max(lengths) - min(lengths) <= 7
    if batch >= 4 * size:
        assert all(share.start % 4 == 0 for share in shares)


def test_shares_that_synchronised_batch_norm_would_wait_for_are_refused(data: Path) -> None:
    """Of 18 samples two processes take 8 and 10: two and three micro-batches of 4."""
    prepared = Prepared(data / SUB4, manifest.load(data / SUB4))
    world = World(1, 2, torch.device("cpu"))

    def recipe(**values: Any) -> Recipe:
        return Recipe(model="any", epochs=1, batch_size=18, micro_batch=4, **values)

    make_plan(recipe(), prepared, world)
    with pytest.raises(ConfigError, match=r"2 to 3 micro-batches each.*batch_size = 8"):
        make_plan(recipe(sync_bn=True), prepared, world)


def test_a_batch_larger_than_the_shard_is_the_shard() -> None:
    assert (plan(64, samples=10).steps, plan(64, samples=10).batch) == (1, 10)
    assert (plan(64, samples=100).steps, len(plan(64, samples=100).order(0))) == (1, 64)


@pytest.mark.parametrize("folder", [SUB4, RAW, WHOLE])
def test_normalised_batches_have_mean_0_and_deviation_1(data, folder: str) -> None:  # type: ignore[no-untyped-def]
    """Through the stock Loader, over all of train, per RGB channel."""
    from trainer.data.loader import ShardLoader

    found = manifest.load(data / folder)
    prepared, cpu = Prepared(data / folder, found), torch.device("cpu")
    for k in range(min(2, found.preparation.splits)):
        loader = ShardLoader(prepared, "train", k, batch_size=32, device=cpu)
        normaliser, order = Normaliser(found, k), np.arange(loader.samples)
        batches = [normaliser(values) for values, _ in loader.batches(order)]
        values = torch.cat(batches)
        assert len(values) == found.written("train")
        tolerance = 1e-3 if found.preparation.codec != "jpeg" else 0.03  # its decoder is inexact
        assert values.mean(dim=(0, 2, 3)).abs().max() < tolerance
        assert (values.std(dim=(0, 2, 3)) - 1).abs().max() < tolerance


@pytest.mark.parametrize(
    ("text", "shards"),
    [
        ("7", [(7,)]),
        ("0-3", [(0,), (1,), (2,), (3,)]),
        ("3,5", [(3,), (5,)]),
        ("all", [(k,) for k in range(9)]),
        ("1,1-2", [(1,), (2,)]),
        ("0+1", [(0, 1)]),
        ("0+1,2", [(0, 1), (2,)]),
        ("2+0-1 + 8, 0-2+8", [(0, 1, 2, 8)]),
    ],
)
def test_shards_are_parsed(text: str, shards: list[tuple[int, ...]]) -> None:
    assert parse_shards(text, 9) == shards


@pytest.mark.parametrize(
    "text", ["9", "-1", "x", "", "3-1", "1-", "1.5", "0-9", "²", "0+", "1+1", "0-2+1"]
)
def test_wrong_shards_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard"):
        parse_shards(text, 9)


def test_metrics_are_what_they_say() -> None:
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5.0], [5, 4, 3, 2, 1, 0.0]])
    found = metrics(logits, torch.tensor([0, 0, 1]))
    assert (found.top1, found.samples) == (pytest.approx(1 / 3), 3)
    assert found.top5 == pytest.approx(2 / 3)
    probabilities = torch.softmax(logits.double(), 1)
    expected = -np.log([probabilities[0, 0], probabilities[1, 0], probabilities[2, 1]]).mean()
    assert found.nll == pytest.approx(expected)


def test_seeds_differ_in_what_a_generator_on_the_cpu_takes_of_them() -> None:
    """Its low 32 bits, by seed as well as by step; and by what comes out of it."""
    parts = [(seed, 1, step, 0) for seed in range(20) for step in (0, 1, 2, 2**24, 2**31)]
    low = {mixed_seed(*each) & 0xFFFFFFFF for each in parts}
    assert len(low) == len(parts)
    draws = {torch.rand((), generator=torch.Generator().manual_seed(s)).item() for s in low}
    assert len(draws) == len(parts)
    bits = [bin(mixed_seed(n) ^ mixed_seed(n + 1)).count("1") for n in range(1000)]
    assert abs(np.mean(bits) - 32) < 0.5
