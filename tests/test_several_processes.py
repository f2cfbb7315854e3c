"""Several processes that train one network: what they agree on after each step."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

PROGRAM = """
import sys
import torch
from trainer import models
from trainer.process.world import joined
from trainer.recipes.recipe import Optimizer, Recipe
from trainer.run.step import Stepper

micro, model, to = int(sys.argv[1]), sys.argv[2], sys.argv[3]
with joined(torch.device("cpu")) as world:
    recipe = Recipe(model="any", epochs=1, batch_size=24, micro_batch=micro, ema=0.5,
                    optimizer=Optimizer(lr=0.05, clip_norm=1.0))
    torch.manual_seed(0)
    network = models.build(model, classes=4, channels=3, size=8, width=4)
    stepper = Stepper(network, recipe, world)
    share = world.share(24)
    for step in range(4):
        rng = torch.Generator().manual_seed(step)
        inputs = torch.randn(24, 3, 8, 8, generator=rng)
        labels = torch.randint(4, (24,), generator=rng)
        if step == 2:
            inputs[1] = float("nan")  # of the first process alone
        stepper.network.train()
        stepper.step(inputs[share], [(labels[share], 1.0)], 0.05, 24)
    counters = stepper.read_counters()
    found = {"weights": [p.detach() for p in stepper.network.parameters()],
             "evaluated": list(stepper.evaluated().state_dict().values()),
             "counted": counters.counted, "skipped": counters.skipped, "loss": counters.loss}
    torch.save(found, f"{to}/{world.rank}-of-{world.size}")
"""


def run(processes: int, micro: int, model: str, to: Path) -> list[dict[str, object]]:
    program = to / "program.py"
    program.write_text(PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launcher, str(program), str(micro), model, str(to)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [torch.load(to / f"{rank}-of-{processes}") for rank in range(processes)]


@pytest.mark.parametrize("micro", [0, 4])
def test_processes_end_with_the_same_network(micro: int, tmp_path: Path) -> None:
    """With batch norm, averages, micro-batches, and a step that only one of them saw go wrong."""
    one, other = run(2, micro, "cifar-resnet8", tmp_path)
    for part in ("weights", "evaluated"):
        pairs = zip(one[part], other[part], strict=True)  # type: ignore[call-overload]
        assert all(torch.equal(a, b) for a, b in pairs)
        assert all(torch.isfinite(value).all() for value in one[part])  # type: ignore[attr-defined]
    assert (one["counted"], one["skipped"]) == (other["counted"], other["skipped"]) == (3, 1)


def test_their_number_changes_no_more_than_rounding(tmp_path: Path) -> None:
    """Of a network without batch norm: weights, averages and the sum of the shares' losses."""
    (alone,) = run(1, 0, "fc3", tmp_path)
    shared = run(2, 5, "fc3", tmp_path)
    for part in ("weights", "evaluated"):
        for a, b in zip(alone[part], shared[0][part], strict=True):  # type: ignore[call-overload]
            assert torch.allclose(a, b, atol=1e-6)
    losses = [float(each["loss"]) for each in shared]  # type: ignore[arg-type]
    assert sum(losses) == pytest.approx(float(alone["loss"]), rel=1e-5)  # type: ignore[arg-type]


WAITING = """
import sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from trainer.process.world import World
dist.init_process_group("gloo", timeout=timedelta(seconds=2))
world = World(dist.get_rank(), 2, torch.device("cpu"))
if world.leads:
    time.sleep(5)
getattr(world, sys.argv[1])()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("way", "ends"), [("wait_long", True), ("wait", False)])
def test_a_process_may_work_alone_for_longer_than_collectives_wait(
    way: str, ends: bool, tmp_path: Path
) -> None:
    """As the first one does when it reads all files of a shard from a slow disk."""
    (tmp_path / "program.py").write_text(WAITING)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "program.py"), way],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode == 0) is ends, done.stderr
