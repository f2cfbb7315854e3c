"""P8: the rate of training fed by the loader against the same steps on one fixed batch.

    python benchmarks/step.py [--model resnet34] [--batch 256] [--splits 36] [--samples 20000]
                              [--against CHECKOUT]

Both do the same to each batch (augmentation, normalisation, forward, backward, update), in
turn; the fixed batch lies on the device already. One number for each feed. The shard is made of
smoothed noise, 56×56 planes; on a GPU the ratio is what P8 asks for, on a CPU the network is so
slow beside the loader that it says little.

--against: the same in turn with another checkout's own benchmarks/step.py, by this interpreter; the
ratio of the best rates on the fixed batch, this one's over the other's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from common import noise_shards, report
from torch import Tensor

from trainer.data.feed import feed
from trainer.data.loader import Batch, ShardLoader
from trainer.data.selection import Prepared
from trainer.process.device import pick_device
from trainer.process.world import World
from trainer.recipes.recipe import Augment, Optimizer, Recipe
from trainer.run.context import RunContext
from trainer.run.execution import Execution
from trainer.run.spec import RunSpec

K, ROUNDS = 1, 3


class Loop:
    """The steps of training, whatever feeds them."""

    def __init__(
        self, data: Prepared, recipe: Recipe, device: torch.device, compiled: bool = False
    ) -> None:
        k = min(K, data.manifest.preparation.splits - 1)
        spec = RunSpec(
            data=data.directory.absolute(), planes=(k,), recipe=recipe,
            directory=data.directory.absolute() / "run",  # nothing is written there
            execution=Execution(compile_network=compiled),
        )  # fmt: skip
        self.context = RunContext.build(spec, data, World(0, 1, device))
        self.world, self.plan = self.context.world, self.context.plan
        self.augmenter, self.stepper = self.context.augmenter, self.context.stepper
        self.stepper.network.train()

    def rate(self, batches: Iterator[Batch], steps: int) -> float:
        """Images a second over `steps` batches."""
        self._settle()
        start = time.perf_counter()
        for step, (values, labels) in enumerate(islice(batches, steps)):
            self.context.train_step(values, labels, step % self.context.steps)
        self._settle()
        return steps * self.plan.batch / (time.perf_counter() - start)

    def _settle(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()


def same(batch: tuple[Tensor, Tensor]) -> Iterator[Batch]:
    """One batch, for ever."""
    while True:
        yield batch


def measure(data: Prepared, recipe: Recipe, device: torch.device, steps: int) -> dict[str, float]:
    """Best of some rounds in turn: images/s of each feed and on one batch, and the ratios."""
    loop = Loop(data, recipe, device)
    loader = ShardLoader(data, "train", K, batch_size=loop.plan.batch, device=device)
    feeds = {kind: feed(loader, kind, False) for kind in ("stream", "resident")}
    order = loop.plan.order(0)
    steps = min(steps, loop.plan.steps)
    values, labels = next(feeds["resident"].batches(order))
    fixed = values.clone(), labels.clone()
    loop.rate(same(fixed), steps)  # warm-up
    rates: dict[str, float] = {}
    for _ in range(ROUNDS):
        found = {kind: loop.rate(source.batches(order), steps) for kind, source in feeds.items()}
        found["fixed"] = loop.rate(same(fixed), steps)
        rates = {name: max(rate, rates.get(name, 0.0)) for name, rate in found.items()}
    ratios = {f"{kind}_ratio": round(rates[kind] / rates["fixed"], 3) for kind in feeds}
    return {**{f"{name}_images_per_s": round(rate, 1) for name, rate in rates.items()}, **ratios}


def compare(other: Path, options: list[str]) -> dict[str, float]:
    """Images/s of this checkout and another, and their ratio; best of some rounds in turn."""
    here = Path(__file__).parents[1]
    rates: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, checkout in (("this", here), ("other", other)):
            done = subprocess.run(
                [sys.executable, "benchmarks/step.py", *options], cwd=checkout, check=True,
                capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(checkout)},
            )  # fmt: skip
            rate = json.loads(done.stdout.splitlines()[-1])["fixed_images_per_s"]
            rates[name] = max(rate, rates.get(name, 0.0))
    return {**{f"{name}_images_per_s": rate for name, rate in rates.items()},
            "ratio": round(rates["this"] / rates["other"], 3)}  # fmt: skip


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet34")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--splits", type=int, default=36)
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    if options.against is not None:
        given = {key: value for key, value in vars(options).items() if key != "against"}
        words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        report("step-against", **given, **compare(options.against.resolve(), words))
        return
    device = pick_device()
    recipe = Recipe(
        model=options.model, epochs=1, batch_size=options.batch,
        optimizer=Optimizer(lr=1e-3), augment=Augment(shift=4),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data = noise_shards(Path(folder), options.splits, 56, options.samples)
        found = measure(data, recipe, device, options.steps)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    report("step", gpu=gpu, model=options.model, plane="3x56x56", batch=options.batch, **found)


if __name__ == "__main__":
    main()
