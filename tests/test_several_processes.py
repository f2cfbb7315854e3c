"""Several processes that train one network: what they agree on after each step."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from trainer import models
from trainer.process.world import World
from trainer.recipes.recipe import Optimizer, Recipe
from trainer.run.step import Stepper

PROGRAM = """
import sys
import torch
from tests.test_several_processes import CASES, train
from trainer.process.world import joined

with joined(torch.device("cpu")) as world:
    for number, case in enumerate(CASES):
        torch.save(train(*case, world), f"{sys.argv[1]}/{number}-{world.rank}")
"""
Found = dict[str, Any]
CASES = ((0, "cifar-resnet8"), (4, "cifar-resnet8"), (5, "fc3"))  # micro-batch, network


def train(micro: int, model: str, world: World) -> Found:
    """Four steps, of which one is not finite in the first process alone."""
    recipe = Recipe(model="any", epochs=1, batch_size=24, micro_batch=micro, ema=0.5,
                    optimizer=Optimizer(lr=0.05, clip_norm=1.0))  # fmt: skip
    torch.manual_seed(0)
    network = models.build(model, classes=4, channels=3, size=8, width=4)
    stepper = Stepper(network, recipe, world)
    share = world.share(24)
    for step in range(4):
        rng = torch.Generator().manual_seed(step)
        inputs = torch.randn(24, 3, 8, 8, generator=rng)
        labels = torch.randint(4, (24,), generator=rng)
        if step == 2:
            inputs[1] = float("nan")
        stepper.network.train()
        stepper.step(inputs[share], [(labels[share], 1.0)], 0.05, 24)
    counters = stepper.read_counters()
    return {
        "weights": [p.detach() for p in stepper.network.parameters()],
        "evaluated": list(stepper.evaluated().state_dict().values()),
        "counted": counters.counted,
        "skipped": counters.skipped,
        "loss": counters.loss,
    }


def by_two(program: Path, *args: object) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, str(program), *map(str, args)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Found, Found]]:
    """What the two processes have after each of CASES."""
    to = tmp_path_factory.mktemp("two")
    (to / "program.py").write_text(PROGRAM)
    done = by_two(to / "program.py", to)
    assert done.returncode == 0, done.stderr
    return [
        (torch.load(to / f"{number}-0"), torch.load(to / f"{number}-1"))
        for number in range(len(CASES))
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_processes_end_with_the_same_network(number: int, pairs: list[tuple[Found, Found]]) -> None:
    """With batch norm, averages, micro-batches, and a step that only one of them saw go wrong."""
    one, other = pairs[number]
    for part in ("weights", "evaluated"):
        assert all(torch.equal(a, b) for a, b in zip(one[part], other[part], strict=True))
        assert all(torch.isfinite(value).all() for value in one[part])
    assert (one["counted"], one["skipped"]) == (other["counted"], other["skipped"]) == (3, 1)


def test_their_number_changes_no_more_than_rounding(pairs: list[tuple[Found, Found]]) -> None:
    """Of a network without batch norm: weights, averages and the sum of the shares' losses."""
    alone = train(0, "fc3", World(0, 1, torch.device("cpu")))
    for part in ("weights", "evaluated"):
        for a, b in zip(alone[part], pairs[2][0][part], strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    losses = [float(each["loss"]) for each in pairs[2]]
    assert sum(losses) == pytest.approx(float(alone["loss"]), rel=1e-5)


WAITING = """
import time
from datetime import timedelta
import torch, torch.distributed as dist
from trainer.process.world import World
dist.init_process_group("gloo", timeout=timedelta(seconds=4))
world = World(dist.get_rank(), 2, torch.device("cpu"))
for way in (world.wait_long, world.wait):
    if world.leads:
        time.sleep(7)
    way()
    print(f"waited {way.__name__}\\n", end="", flush=True)  # one write: lines of two stay whole
dist.destroy_process_group()
"""


def test_a_process_may_work_alone_for_longer_than_collectives_wait(tmp_path: Path) -> None:
    """As the first one does when it reads all files of a shard from a slow disk; where it says so
    beforehand.
    """
    (tmp_path / "program.py").write_text(WAITING)
    done = by_two(tmp_path / "program.py")
    assert done.stdout.count("waited wait_long\n") == 2, done.stderr
    assert done.stdout.count("waited wait\n") < 2
    assert done.returncode
