"""A recipe and a shard in; the order of its training, and what is done to each batch, out."""

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from trainer.data.feed import Plan
from trainer.data.normalise import Normaliser
from trainer.data.selection import Prepared
from trainer.methods.augment import Augmenter
from trainer.methods.draws import BLOCK
from trainer.process.seeds import FIRST_FLIPS
from trainer.process.world import World
from trainer.recipes.recipe import Recipe


def make_plan(recipe: Recipe, data: Prepared, world: World) -> Plan:
    """The order of training."""
    plan = Plan(
        samples=data.manifest.written("train"),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        world=world,
        repeats=recipe.repeats,
    )
    if plan.batch < world.size:
        raise ConfigError(f"batches of {plan.batch} samples cannot be shared by {world.size}")
    if recipe.sync_bn and recipe.micro_batch:
        _check_equal_turns(plan, recipe.micro_batch)
    return plan


def _check_equal_turns(plan: Plan, size: int) -> None:
    """Batch norm over all processes is computed once a micro-batch, by all of them together."""
    world = plan.world
    ranks = [World(rank, world.size, world.device) for rank in range(world.size)]
    shares = [ranks[rank].share(plan.batch) for rank in range(world.size)]
    turns = {-(-(share.stop - share.start) // size) for share in shares}
    if len(turns) > 1:
        raise ConfigError(
            f"recipe: sync_bn with micro_batch = {size}: of batches of {plan.batch} samples "
            f"{world.size} processes have {min(turns)} to {max(turns)} micro-batches each, and "
            f"would wait for each other for ever; batch_size = {size * world.size} or a multiple "
            "of it does"
        )


def check(recipe: Recipe, data: Prepared) -> None:
    """Refuse what a recipe asks of data that cannot give it."""
    prep, policy = data.manifest.preparation, recipe.augment.policy
    if policy != "none" and prep.splits > 1:
        raise ConfigError(
            f"recipe: augment.policy = {policy}: for whole images (prepare --splits 1), a plane's "
            "colours and edges are not those of the image; --set augment.policy=none leaves it out"
        )
    side = prep.input_shape[1]
    for key, largest in (("shift", side - 1), ("cutout", side)):
        if (value := getattr(recipe.augment, key)) > largest:
            raise ConfigError(
                f"recipe: augment.{key} = {value}: planes have {side} px here, and nothing of them "
                f"would be left: at most {largest} (--set augment.{key}={largest // 4})"
            )
    if recipe.test_crops > 1 and prep.resize != "shortest":
        raise ConfigError(
            f"recipe: test_crops = {recipe.test_crops}: {data.directory} did not keep the aspect "
            "of its images (prepare --splits 1 --resize shortest); --set test_crops=1 takes them "
            "as they are"
        )


def total_steps(recipe: Recipe, plan: Plan) -> int:
    """Steps from first to last."""
    return recipe.iterations or recipe.epochs * plan.steps


def remarks(recipe: Recipe, plan: Plan) -> list[str]:
    """What of its schedule a run is too short for, and of its batch the data too few."""
    schedule, epochs = recipe.schedule, total_steps(recipe, plan) / plan.steps
    late = [epoch for epoch in schedule.milestones if epoch >= epochs]
    said = []
    if schedule.warmup_epochs >= epochs:
        said.append(f"the rate is still rising: warmup_epochs = {schedule.warmup_epochs:g}")
    if schedule.name == "multistep" and late:
        said.append(f"never reached: milestones = {late}")
    if schedule.name in ("step", "sgdr") and schedule.period_epochs >= epochs:
        said.append(f"the first period does not end: period_epochs = {schedule.period_epochs:g}")
    found = [f"at the end of {epochs:.4g} epochs {line}" for line in said]
    if recipe.batch_size > plan.batch:
        found.append(
            f"batches are of all {plan.batch} samples of train: batch_size = {recipe.batch_size}"
        )
    return found


def make_augmenter(
    recipe: Recipe, data: Prepared, planes: tuple[int, ...], plan: Plan, normaliser: Normaliser
) -> Augmenter:
    """What is done to the batches of `plan`."""
    prep, mirrored = data.manifest.preparation, None
    if recipe.augment.alternating_flip:
        mirrored = AlternatingFlips(plan)
    return Augmenter(
        recipe.augment, prep, planes, recipe.seed, normaliser, plan.batch, plan.share, mirrored
    )


class AlternatingFlips:
    """Which images of each step are mirrored, so that two epochs in a row show both sides of all
    images: half of them, drawn once, in even epochs, the others in odd ones (Jordan 2024).
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        rng = np.random.default_rng([plan.seed, FIRST_FLIPS])
        self._first = rng.random(plan.samples, np.float32) < 0.5
        self._epoch, self._order = -1, np.empty((0, 0), np.int64)

    def __call__(self, epoch: int, block: int) -> NDArray[np.bool_]:
        """(BLOCK, share) bool; False for steps that lie in another epoch."""
        plan, share = self.plan, self.plan.share.stop - self.plan.share.start
        if epoch != self._epoch:
            self._epoch, self._order = epoch, plan.order(epoch).reshape(plan.steps, share)
        found = np.zeros((BLOCK, share), np.bool_)
        steps = np.arange(block * BLOCK, (block + 1) * BLOCK) - epoch * plan.steps
        here = (steps >= 0) & (steps < plan.steps)
        found[here] = self._first[self._order[steps[here]]] ^ bool(epoch % 2)
        return found
