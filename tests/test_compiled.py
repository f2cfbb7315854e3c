"""`--compile`: the same training but for rounding, and nothing compiled twice; without it torch's
compiler is not even imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import ROOT, SHORTEST, SUB4
from trainer.process.world import World
from trainer.recipes.recipe import Optimizer, Recipe
from trainer.run.step import Stepper


def stepper(device: torch.device, *, compiled: bool) -> Stepper:
    recipe = Recipe(
        model="any",
        epochs=1,
        batch_size=12,
        ema=0.9,
        precision="fp32",
        optimizer=Optimizer(lr=0.05, clip_norm=1.0),
    )
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    return Stepper(network, recipe, World(0, 1, device), compiled=compiled)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(12, 3, 8, 8, generator=rng)
    return inputs, torch.randint(4, (12,), generator=rng)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compiled_training_is_the_same_but_for_rounding(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At another rate in each step, a step that does not count among them, and evaluated between
    two of them: the network is compiled once for all. On a GPU by CUDA graphs.
    """
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    tolerance = 1e-5 if device == "cpu" else 1e-2  # convolutions round to TF32 there
    pair = [stepper(torch.device(device), compiled=compiled) for compiled in (False, True)]
    for step in range(8):
        inputs, labels = (part.to(device) for part in batch(step))
        if step == 3:
            inputs = inputs * float("nan")
        for each in pair:
            each.network.train()
            each.step(inputs, [(labels, 1.0)], 0.05 * (step + 1) / 8, 12)
            each.evaluated()(inputs)
    plain, compiled = (each.read_counters() for each in pair)
    assert (plain.counted, compiled.counted) == (7, 7)
    assert compiled.loss == pytest.approx(plain.loss, rel=tolerance)
    states = [each.network.state_dict() | each.evaluated().state_dict() for each in pair]
    for name, value in states[0].items():
        assert torch.allclose(value.double(), states[1][name].double(), atol=tolerance), name


TRAIN = """
import sys
from cli import main
for optimizer, *words in (("sgd", sys.argv[1]), ("adamw", sys.argv[2])):
    main(["train", "--data", *words, "--runs", sys.argv[3], "--shard", "0", "--recipe", "digits",
          "--set", "epochs=2", "--set", "batch_size=16", "--set", "model_args.width=8", "--set",
          "optimizer.lr=0.01", "--set", f"optimizer.name={optimizer}"], standalone_mode=False)
print("torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""


def test_plain_training_does_not_import_the_compiler(data: Path, tmp_path: Path) -> None:
    """torch's own ways to it lead by its compiler, for more than half of a short run's CPU time."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, data / SUB4, data / SHORTEST, tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nFalse False\n"), done.stderr
    assert len(list(tmp_path.rglob("result.json"))) == 2
