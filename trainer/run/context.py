"""All that one run needs, put together once: training, a dry run and benchmarks use the same parts.

One step is `train_step`: a batch is augmented and normalised, and the stepper updates the network.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.data.crops import FIVE
from trainer.data.feed import Feed, Loader, Plan, feed
from trainer.data.groups import open_split
from trainer.data.loader import Batches, ShardLoader
from trainer.data.normalise import Normaliser
from trainer.data.selection import Prepared
from trainer.methods.augment import Augmenter
from trainer.methods.schedule import lr_at
from trainer.process.device import seed_torch
from trainer.process.seeds import MASKS, mixed_seed
from trainer.process.world import World
from trainer.recipes.recipe import Recipe
from trainer.run import pretrained
from trainer.run.evaluate import Predictor
from trainer.run.network import build_network, fit_stem
from trainer.run.setup import make_augmenter, make_plan, total_steps
from trainer.run.spec import RunSpec
from trainer.run.step import Stepper


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The parts of a run, on its device. `steps`: from its first to its last."""

    spec: RunSpec
    data: Prepared
    world: World
    plan: Plan
    steps: int
    normaliser: Normaliser
    augmenter: Augmenter
    stepper: Stepper

    @classmethod
    def build(
        cls, spec: RunSpec, data: Prepared, world: World, weights: Path | None = None
    ) -> "RunContext":
        """Of a specification. `weights`: a file that the network starts from."""
        recipe = spec.recipe
        plan = make_plan(recipe, data, world)
        normaliser = Normaliser(data.manifest, spec.planes).to(world.device)
        network = build_network(recipe, data.manifest, len(spec.planes), spec.code)
        if weights is not None:
            pretrained.start_from(network, weights)
        return cls(
            spec=spec,
            data=data,
            world=world,
            plan=plan,
            steps=total_steps(recipe, plan),
            normaliser=normaliser,
            augmenter=make_augmenter(recipe, data, spec.planes, plan, normaliser),
            stepper=Stepper(network, recipe, world, compiled=spec.execution.compile_network),
        )

    @property
    def recipe(self) -> Recipe:
        """What is trained, and how."""
        return self.spec.recipe

    @property
    def name(self) -> str:
        """What people call the run."""
        return f"{self.data.described} shard {self.spec.shard}"

    @property
    def batch(self) -> int:
        """Samples of a step that are for this process."""
        share = self.plan.share
        return int(share.stop - share.start)

    @property
    def epochs(self) -> int:
        """In all; the last one may be a part of one."""
        return -(-self.steps // self.plan.steps)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        recipe, per_epoch = self.recipe, self.plan.steps
        peak = recipe.optimizer.lr
        return lr_at(recipe.schedule, peak, step, steps=self.steps, per_epoch=per_epoch)

    def loader(self, split: str, *, random_crops: bool = False) -> Loader:
        """Reads the planes of a split."""
        return open_split(
            self.data, split, self.spec.planes, batch_size=self.batch,
            device=self.world.device, random_crops=random_crops,
        )  # fmt: skip

    def test_loader(self, split: str) -> Loader:
        """What the final figures are of; the network sees no more at a time than in training."""
        if self.recipe.test_crops == 1:
            return self.loader(split)
        return open_split(
            self.data, split, self.spec.planes, batch_size=self.batch // FIVE,
            device=self.world.device, five_crops=True,
        )  # fmt: skip

    def open_feed(self, *, fresh: bool) -> Feed:
        """Where training's batches come from. `fresh`: before the first step, when a network that
        has a stem of whitened patches gets it from the first images.
        """
        crops = self.data.manifest.preparation.resize == "shortest"
        source = self.loader("train", random_crops=crops)
        if fresh and self.spec.init is None:  # of another network, the stem is of other planes
            fit_stem(self.stepper.network, self.normaliser, source)
        if self.world.device.type == "cuda" and self.spec.execution.feed == "auto":
            self._rehearse(source.shape)
        return feed(source, self.spec.execution.feed, crops)

    def _rehearse(self, shape: tuple[int, ...]) -> None:
        """So that a feed that stays on the device takes only what a step leaves free."""
        device = self.world.device
        values = torch.zeros((self.batch, *shape), dtype=torch.int8, device=device)
        labels = torch.zeros(self.batch, dtype=torch.int64, device=device)
        self.stepper.rehearse(*self.augmenter(values, labels, 0, 0))

    def batches(self, source: Feed, first: int, until: int) -> Batches:
        """The batches of steps `first` to `until`, epoch after epoch."""
        step = first
        while step < until:
            epoch, begun = divmod(step, self.plan.steps)
            count = min(self.plan.steps - begun, until - step)
            order = self.plan.order(epoch, begun)[: count * self.batch]
            if isinstance(source, ShardLoader):
                source.draw(self.recipe.seed, epoch, self.plan.positions(begun))
            with closing(source.batches(order)) as batches:
                yield from batches
            step += count

    def train_step(self, values: Tensor, labels: Tensor, step: int) -> None:
        """Update the network by one batch, a function of (seed, step) and the weights before."""
        # for dropout and the like, which draw from torch's own state
        seed_torch(mixed_seed(self.recipe.seed, MASKS, step, self.world.rank), values.device)
        epoch = step // self.plan.steps
        inputs, targets = self.augmenter(values, labels, epoch, step)
        epochs = step / self.plan.steps
        self.stepper.step(inputs, targets, self.lr(step), self.plan.batch, epochs)

    def predictor(self) -> Predictor:
        """The network as it stands, to be evaluated; it sees each image once."""
        return Predictor(self.stepper.evaluated(), self.normaliser, self.stepper.dtype).eval()
