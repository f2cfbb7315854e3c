"""Batches from real betons: their order, both feeds, and what becomes of the loader's threads."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import DamagedError
from pipeline.format import manifest
from pipeline.format.beton import BetonReader
from tests.conftest import RAW, ROOT, SHORTEST, SUB4, WHOLE
from trainer.data import crops, field
from trainer.data.feed import Plan, feed
from trainer.data.loader import ShardLoader
from trainer.data.selection import Prepared
from trainer.process.world import World

pytestmark = pytest.mark.processes

CPU = torch.device("cpu")


@pytest.mark.parametrize("folder", [SUB4, RAW, WHOLE, SHORTEST])
def test_evaluation_counts_every_sample_once_in_order(data: Path, folder: str) -> None:
    """A last partial batch included, though FFCV drops it by default."""
    prepared = Prepared(data / folder, manifest.load(data / folder))
    loader = ShardLoader(prepared, "val", 0, batch_size=16, device=CPU)
    batches = [(v.clone(), y.clone()) for v, y in loader.batches(np.arange(loader.samples))]
    assert [len(y) for _, y in batches] == [16, 14]
    with BetonReader(data / folder / "val" / "shard_00.beton") as reader:
        assert torch.cat([y for _, y in batches]).tolist() == reader.labels.tolist()
    assert batches[0][0].dtype == torch.int8
    shape = prepared.manifest.preparation.input_shape
    assert batches[0][0].shape == (16, *shape)


@pytest.mark.parametrize("kind", ["stream", "resident"])
def test_training_batches_follow_the_order_of_the_epoch(data: Path, kind: str) -> None:
    """The same from both feeds, entered at any step, and shared by any number of processes."""
    prepared = Prepared(data / SUB4, manifest.load(data / SUB4))
    with BetonReader(data / SUB4 / "train" / "shard_01.beton") as reader:
        stored = reader.labels.copy()
    for size in (1, 3):
        shares: list[list[list[int]]] = []
        for rank in range(size):
            plan = Plan(samples=len(stored), batch_size=16, seed=4, world=World(rank, size, CPU))
            own = plan.share.stop - plan.share.start
            loader = ShardLoader(prepared, "train", 1, batch_size=own, device=CPU)
            source = feed(loader, kind, False)
            assert source.kind == kind
            found = [y.tolist() for _, y in source.batches(plan.order(1, first=2))]
            assert len(found) == plan.steps - 2
            shares.append(found)
        batches = [[y for part in parts for y in part] for parts in zip(*shares, strict=True)]
        order = np.random.default_rng([4, 1]).permutation(len(stored))
        expected = [stored[order[i : i + 16]].tolist() for i in range(32, len(stored) - 15, 16)]
        assert batches == expected


def test_both_feeds_give_the_same_planes(data: Path) -> None:
    prepared = Prepared(data / SUB4, manifest.load(data / SUB4))
    order = Plan(samples=90, batch_size=8, seed=1, world=World(0, 1, CPU)).order(0)
    loader = ShardLoader(prepared, "train", 2, batch_size=8, device=CPU)
    streamed = [v.clone() for v, _ in loader.batches(order)]
    resident = [v for v, _ in feed(loader, "resident", False).batches(order)]
    assert len(streamed) == 11
    assert all(torch.equal(a, b) for a, b in zip(streamed, resident, strict=True))


def test_loader_threads_end_with_the_epoch(data: Path) -> None:
    """Also when the epoch is left in the middle; torch keeps its own number of threads."""
    import threading

    prepared = Prepared(data / SUB4, manifest.load(data / SUB4))
    before, threads = threading.active_count(), torch.get_num_threads()
    loader = ShardLoader(prepared, "train", 0, batch_size=4, device=CPU, threads=1)
    for _ in range(3):
        for batches in (10, 5, 4):  # more than FFCV keeps ahead, as many, and its end besides
            epoch = loader.batches(np.arange(4 * batches))
            next(epoch)
            time.sleep(0.1)
            epoch.close()  # type: ignore[attr-defined]
        list(loader.batches(np.arange(40)))
    assert threading.active_count() == before
    assert torch.get_num_threads() == threads


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_loader_thread_is_an_error_and_no_wait(data: Path) -> None:
    """FFCV alone would block for ever."""
    prepared = Prepared(data / SUB4, manifest.load(data / SUB4))
    loader = ShardLoader(prepared, "train", 0, batch_size=16, device=CPU)
    list(loader.batches(np.arange(loader.samples)))
    loader._loader.reader.metadata = None  # what its thread then trips over
    started = time.monotonic()
    with pytest.raises(DamagedError, match=r"shard_00\.beton: the loader's thread ended"):
        list(loader.batches(np.arange(loader.samples)))
    assert time.monotonic() - started < 10


def test_memory_is_not_filled_behind_ffcv_s_back(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's deterministic mode would, on a GPU late, over the first batches (see test_gpu)."""
    source = Prepared(data / SUB4, manifest.load(data / SUB4))
    loader = ShardLoader(source, "train", 0, batch_size=16, device=torch.device("cpu"))
    filled, graph = [], loader._loader.graph
    allocate = graph.allocate_memory

    def watched(*args: int) -> object:
        filled.append(torch.utils.deterministic.fill_uninitialized_memory)
        return allocate(*args)

    monkeypatch.setattr(graph, "allocate_memory", watched)
    for _ in loader.batches(np.arange(loader.samples)):
        assert torch.utils.deterministic.fill_uninitialized_memory  # again as it was
    assert filled == [False]


def compiled(data: Path) -> int:
    """How often decoders were compiled here for what reads shards; from the cache is not."""
    for folder, kinds in {SUB4: ("",), SHORTEST: ("", "random_crops", "five_crops")}.items():
        prepared = Prepared(data / folder, manifest.load(data / folder))
        for kind in kinds:
            options = {kind: True} if kind else {}
            loader = ShardLoader(prepared, "val", 0, batch_size=16, device=CPU, **options)
            loader.draw(0, 0, np.arange(loader.samples))
            assert sum(len(y) for _, y in loader.batches(np.arange(loader.samples))) == 30
    kernels = (field.decode_batch, crops._decode_batch, crops._decode_five_batch)
    found = [kernel.stats for kernel in kernels]
    assert all(stats.cache_hits or stats.cache_misses for stats in found)
    return sum(sum(stats.cache_misses.values()) for stats in found)


def test_decoders_are_compiled_once_a_machine_not_once_a_process(data: Path) -> None:
    """For up to 3 s of CPU in each process that trains."""
    compiled(data)
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.test_loader import compiled\n"
        "print(compiled(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error:Cannot cache", "-c", code, str(data)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0\n", "")
