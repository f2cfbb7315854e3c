"""Shards in a loop of one's own: the documentation's code as it stands, and what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import ConfigError
from tests.conftest import ROOT, SUB4
from trainer import ShardDataset
from trainer.data.groups import open_split
from trainer.data.normalise import Normaliser
from trainer.data.selection import select

CPU = torch.device("cpu")


def test_the_code_of_the_documentation_runs(data: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "data/cifar10").mkdir(parents=True)
    (tmp_path / "data/cifar10/sub4").symlink_to(data / SUB4)
    said = []
    for number, block in enumerate(blocks):
        (tmp_path / f"block{number}.py").write_text(block)
        done = subprocess.run(
            [sys.executable, f"block{number}.py"], cwd=tmp_path, capture_output=True, text=True,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    right = re.match(r"(\d+) of 30 images of val are classified right\n", said[0])
    assert right is not None
    assert int(right[1]) > 15  # of three classes, by chance 10
    assert said[1].startswith("torch.Size([64, 12, 16, 16]) torch.uint8")


@pytest.mark.parametrize("shard", [2, "0+3"])
def test_batches_are_what_networks_are_trained_on(data: Path, shard: int | str) -> None:
    """Labels, planes and normalised values of every sample, in the given order."""
    prepared = select(data / SUB4)
    ks = (2,) if shard == 2 else (0, 3)
    loader = open_split(prepared, "val", ks, batch_size=7, device=CPU)
    wanted = [(values.clone(), labels.clone()) for values, labels in loader.batches(np.arange(30))]
    dataset = ShardDataset(data / SUB4, shard, "val", batch_size=7)
    found = list(dataset)  # kept, not only looked at: each has memory of its own
    assert len(found) == len(dataset) == len(wanted) == 5
    normaliser = Normaliser(prepared.manifest, ks)
    for (planes, labels), (values, same) in zip(found, wanted, strict=True):
        assert planes.dtype == torch.uint8
        assert planes.shape[1:] == dataset.shape == (3 * len(ks), 16, 16)
        assert labels.equal(same)
        assert dataset.normalise(planes).equal(normaliser(values))
        assert (planes.int() - 128).equal(values.flatten(1, -3).int())


def test_orders_are_drawn_by_seed_and_epoch(data: Path) -> None:
    def labels(dataset: ShardDataset) -> list[int]:
        return [label for _, batch in dataset for label in batch.tolist()]

    first, same, other = (ShardDataset(data / SUB4, 0, batch_size=8, seed=s) for s in (1, 1, 2))
    epochs = [labels(first) for _ in range(3)]
    assert [labels(same) for _ in range(3)] == epochs
    assert epochs[0] != epochs[1] != labels(other)
    same.set_epoch(1)
    assert labels(same) == epochs[1]
    assert len(epochs[0]) == len(first) * 8 == first.samples // 8 * 8


def test_processes_share_the_samples(data: Path) -> None:
    """Each sample once, partial batches or not; as many batches for each where none is partial."""

    def planes(**given: object) -> list[torch.Tensor]:
        dataset = ShardDataset(data / SUB4, 0, batch_size=4, world_size=3, **given)  # type: ignore[arg-type]
        found = list(dataset)
        assert len(found) == len(dataset)
        return [plane for batch, _ in found for plane in batch]

    ((everything, _),) = ShardDataset(data / SUB4, 0, "val", batch_size=30)
    shares = [planes(split="val", rank=rank) for rank in range(3)]
    assert all(shares[i % 3][i // 3].equal(plane) for i, plane in enumerate(everything))
    assert len({len(planes(rank=rank)) for rank in range(3)}) == 1


def test_what_cannot_be_is_refused(data: Path, tmp_path: Path) -> None:
    for changes, said in (
        ({"shard": 4}, "has shards 0 to 3"),
        ({"shard": "0,1"}, r"several together \(0\+1\+2\+3\)"),
        ({"split": "test"}, "no images in split 'test'; there are calib, train, val"),
        ({"rank": 1}, "rank 1 of world_size 1"),
        ({"directory": tmp_path}, "manifest"),
    ):
        with pytest.raises(ConfigError, match=said):
            ShardDataset(**{"directory": data / SUB4, "shard": 0, "batch_size": 8, **changes})  # type: ignore[arg-type]
    workers = DataLoader(ShardDataset(data / SUB4, 0, batch_size=8), batch_size=None, num_workers=1)
    with pytest.raises(ConfigError, match="reads with threads of its own"):
        next(iter(workers))
    alone = DataLoader(ShardDataset(data / SUB4, 0, batch_size=8), batch_size=None)
    assert next(iter(alone))[0].shape == (8, 3, 16, 16)


def test_the_import_changes_no_number_of_threads() -> None:
    code = "import torch; torch.set_num_threads(2); import trainer; trainer.ShardDataset; "
    code += "assert torch.get_num_threads() == 2"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
