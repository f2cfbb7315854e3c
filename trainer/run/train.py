"""Trains one network on one shard, or on several planes together, into a run directory.

A run may be killed at any moment: it goes on from its last checkpoint, and since order and
augmentation are functions of (seed, epoch, step), it ends with the same weights.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import SpectralError, StoppedError
from trainer.data.crops import FIVE
from trainer.data.feed import Feed, Loader, feed
from trainer.data.groups import open_split
from trainer.data.loader import ShardLoader
from trainer.data.normalise import Normaliser
from trainer.data.selection import Prepared, selection_split
from trainer.methods.schedule import lr_at
from trainer.process.device import seed_torch
from trainer.process.seeds import MASKS, mixed_seed
from trainer.process.stop import StopRequest
from trainer.process.world import World
from trainer.record.logbook import Logbook
from trainer.record.rundir import RunDir
from trainer.run import pretrained
from trainer.run.counters import Counters
from trainer.run.evaluate import Metrics, Predictor, evaluate
from trainer.run.execution import Due
from trainer.run.kept import Kept, Progress
from trainer.run.meter import Meter
from trainer.run.network import build_network, fit_stem, make_predictor
from trainer.run.setup import make_augmenter, make_plan, remarks, total_steps
from trainer.run.spec import RunSpec
from trainer.run.step import Stepper

log = logging.getLogger(__name__)
Advance = Callable[[int, str], None]
ProgressBar = Callable[[str, int, str], AbstractContextManager[Advance]]
MAX_BAD_STEPS = 50  # in a row, with gradients that are not finite
TIMED_STEPS = 5000  # the last ones, whose speed is reported (source 003)
LOG_SECONDS = 10.0
AGREE_EVERY = 16  # steps, after which several processes ask each other what one of them wants
# What is due after a step; each includes those before it
_NOTHING, _LOG, _SAVE, _STOP = range(4)


class DivergedError(SpectralError):
    """The gradients are not finite any more."""


class Trainer:
    """The training of one run, by one process or as one of several.

    `weights`: a file that the network starts from.
    """

    def __init__(
        self,
        spec: RunSpec,
        data: Prepared,
        world: World,
        stop: StopRequest,
        weights: Path | None = None,
    ) -> None:
        self.spec, self.data, self.world, self.stop = spec, data, world, stop
        self.run = run = RunDir(spec.directory)
        self.recipe = recipe = spec.recipe
        self.execution = execution = spec.execution
        self.plan = make_plan(recipe, data, world)
        self.normaliser = Normaliser(data.manifest, spec.planes).to(world.device)
        network = build_network(recipe, data.manifest, len(spec.planes))
        self._fit_stem = spec.init is None  # of another run, the stem is of other planes
        if weights is not None:
            pretrained.start_from(network, weights)
        compiled = execution.compile_network
        self.stepper = Stepper(network, recipe, world, compiled=compiled)
        self.kept = Kept(
            run,
            self.stepper,
            world,
            {"shard": spec.shard, "deterministic": execution.deterministic},
        )
        self.steps = total_steps(recipe, self.plan)
        for line in remarks(recipe, self.plan) if world.leads else ():
            log.warning("%s: %s", self._name, line)
        self.augmenter = make_augmenter(recipe, data, spec.planes, self.plan, self.normaliser)
        self._every = recipe.eval_every or self.plan.steps
        self._timed = min(self.steps, TIMED_STEPS)

    def train(self, progress_bar: ProgressBar) -> dict[str, Any]:
        """All steps that are left, then the final evaluation; the result is written too."""
        self.kept.resume(self.steps)
        self.logbook = self._open_log()
        crops = self.data.manifest.preparation.resize == "shortest"
        source = self._loader("train", self._own_batch, random_crops=crops)
        if not self.progress.step and self._fit_stem:
            fit_stem(self.stepper.network, self.normaliser, source)
        if self.world.device.type == "cuda" and self.execution.feed == "auto":
            self._rehearse(source.shape)
        self.feed = feed(source, self.execution.feed, crops)
        self._log_start()
        with closing(self.logbook):
            return self._train(progress_bar)

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self.kept.progress

    @property
    def _own_batch(self) -> int:
        share = self.plan.share
        return int(share.stop - share.start)

    @property
    def _epoch(self) -> int:
        """Epochs that are behind us."""
        return self.progress.step // self.plan.steps

    @property
    def _epochs(self) -> int:
        """Epochs in all, the last one may be a part of one."""
        return -(-self.steps // self.plan.steps)

    @property
    def _epoch_ends(self) -> bool:
        return self.progress.step % self.plan.steps == 0 or self.progress.step == self.steps

    @property
    def _next_evaluation(self) -> int:
        """The step after which the next one is due."""
        return min((self.progress.evaluated // self._every + 1) * self._every, self.steps)

    @property
    def _timing_begins(self) -> bool:
        return self.progress.step == self.steps - self._timed

    @property
    def _name(self) -> str:
        return f"{self.data.described} shard {self.spec.shard}"

    def _rehearse(self, shape: tuple[int, ...]) -> None:
        """So that a feed that stays on the device takes only what a step leaves free."""
        device = self.world.device
        values = torch.zeros((self._own_batch, *shape), dtype=torch.int8, device=device)
        labels = torch.zeros(self._own_batch, dtype=torch.int64, device=device)
        self.stepper.rehearse(*self.augmenter(values, labels, 0, 0))

    def _loader(self, split: str, batch_size: int, **crops: bool) -> Loader:
        device, planes = self.world.device, self.spec.planes
        return open_split(self.data, split, planes, batch_size=batch_size, device=device, **crops)

    def _test_loader(self, split: str) -> Loader:
        """What the final figures are of; the network sees no more at a time than in training."""
        if self.recipe.test_crops == 1:
            return self._loader(split, self._own_batch)
        return self._loader(split, self._own_batch // FIVE, five_crops=True)

    def _train(self, progress_bar: ProgressBar) -> dict[str, Any]:
        split = selection_split(self.data.manifest)
        if split is None:
            log.warning("%s: calib is empty, so the last epoch counts as the best", self._name)
        chooser = self._loader(split, self._own_batch) if split else None
        self.meter, self._due = Meter(self.world), Due(self.execution.save_every)
        with progress_bar(self._name, self.steps - self.progress.step, "steps") as advance:
            while self.progress.evaluated < self.steps:
                until = self._next_evaluation
                while self.progress.step < until:
                    self._train_epoch(until, advance)
                self._choose(split, chooser)
                self.meter.restart()
        self.kept.save()
        return self._final()

    def _train_epoch(self, until: int, advance: Advance) -> None:
        """The rest of the epoch at hand, or to step `until`."""
        self.stepper.network.train()
        epoch, left = self._epoch, until - self.progress.step
        first = self.progress.step % self.plan.steps
        order = self.plan.order(epoch, first)[: left * self._own_batch]
        if isinstance(self.feed, ShardLoader):
            self.feed.draw(self.recipe.seed, epoch, self.plan.positions(first))
        with closing(self.feed.batches(order)) as batches:
            for values, labels in self.meter.waiting(batches):
                self._step(values, labels, epoch)
                advance(1, f"epoch {epoch + 1}/{self._epochs}")
                self._after_step()

    def _step(self, values: Tensor, labels: Tensor, epoch: int) -> None:
        state = self.progress
        # for dropout and the like, which draw from torch's own state
        seed = mixed_seed(self.recipe.seed, MASKS, state.step, self.world.rank)
        seed_torch(seed, values.device)
        inputs, targets = self.augmenter(values, labels, epoch, state.step)
        epochs = state.step / self.plan.steps
        self.stepper.step(inputs, targets, self._rate(state.step), self.plan.batch, epochs)
        self.meter.add(self.plan.batch)
        state.step += 1

    def _count(self) -> Counters:
        """What the steps since the last row came to; waits for the device."""
        found, state = self.stepper.read_counters(), self.progress
        state.nan_grads, state.bad_in_a_row = found.skipped, found.in_a_row
        if found.longest >= MAX_BAD_STEPS:
            raise DivergedError(
                f"{self.run.path}: gradients were not finite in {MAX_BAD_STEPS} steps in a row "
                f"(by step {state.step}); last.pt, if any, is from before. Try a lower optimizer.lr"
            )
        return found

    def _after_step(self) -> None:
        """Log, save and stop where that is due, in all processes at the same step."""
        step, wanted = self.progress.step, _NOTHING
        every = self.execution.save_every.steps or AGREE_EVERY
        known = self._epoch_ends or self._timing_begins or step == self._next_evaluation
        if self.world.size > 1 and not known and step % AGREE_EVERY and step % every:
            return
        if self.stop:
            wanted = _STOP
        elif self._due.after(step):
            wanted = _SAVE
        elif (
            self._epoch_ends
            or self._timing_begins
            or step == self._next_evaluation
            or self.meter.age >= LOG_SECONDS
        ):
            wanted = _LOG
        wanted = self.world.highest(wanted)
        if wanted >= _LOG:
            self._log_training()
        if wanted >= _SAVE and (wanted == _STOP or not self.progress.bad_in_a_row):
            self._due.done()
            self.kept.save()
        if wanted == _STOP:
            raise self._stopped()

    def _stopped(self) -> StoppedError:
        return StoppedError(
            f"{self.run.path}: stopped by {self.stop.name or 'a signal'} after step "
            f"{self.progress.step} of {self.steps}, all is saved: the same command goes on"
        )

    def _rate(self, at: int) -> float:
        recipe = self.recipe
        peak, per_epoch = recipe.optimizer.lr, self.plan.steps
        return lr_at(recipe.schedule, peak, at, steps=self.steps, per_epoch=per_epoch)

    def _choose(self, split: str | None, chooser: Feed | None) -> None:
        """Evaluate the epoch that has ended; keep its weights if they are the best."""
        state, found = self.progress, None
        if chooser is not None:
            network = self.stepper.evaluated()  # which sees each image once
            predictor = Predictor(network, self.normaliser, self.stepper.dtype).eval()
            found = self._evaluate(predictor, chooser)
            if found is None:
                self.kept.save()
                raise self._stopped()
            self._check_finite(str(split), found)
        state.evaluated = state.step
        if found is not None:
            self._log_evaluation("eval", str(split), found)
        if found or state.step == self.steps:
            self.kept.keep_if_best(found)

    def _check_finite(self, split: str, found: Metrics) -> None:
        """A network that is no longer one must not count as trained."""
        if not math.isfinite(found.nll):
            raise DivergedError(
                f"{self.run.path}: the network's answers on {split} are not finite after step "
                f"{self.progress.step}: remove the directory, and try a lower optimizer.lr"
            )

    def _evaluate(self, predictor: Predictor, split: Feed) -> Metrics | None:
        """None if a stop was asked for meanwhile."""
        return evaluate(predictor, split, self.world, self.stop)

    def _open_log(self) -> Logbook:
        return Logbook(
            self.run.path,
            writes=self.world.leads,
            tensorboard=self.execution.tensorboard,
            step=self.progress.step,
        )

    def _log_start(self) -> None:
        self.logbook.row(
            "start",
            step=self.progress.step,
            steps=self.steps,
            steps_per_epoch=self.plan.steps,
            epochs=self._epochs,
            batch_size=self.plan.batch,
            feed=self.feed.kind,
            device=self.world.device.type,
            processes=self.world.size,
            threads=torch.get_num_threads(),
        )

    def _log_training(self) -> None:
        state = self.progress
        state.seconds += self.meter.age
        if self._timing_begins:
            state.timed_from = state.seconds
        figures = self.meter.row(self._count())
        self.logbook.row(
            "train",
            step=state.step,
            epoch=round(state.step / self.plan.steps, 4),
            lr=self._rate(state.step - 1),  # of the last step
            nan_grads=state.nan_grads,
            **figures,
        )
        if self._epoch_ends:
            log.info(
                "%s: epoch %d/%d, loss %.4f, %.0f images/s",
                self._name, self._epoch, self._epochs,
                figures["loss"] or float("nan"), figures["images_per_s"],
            )  # fmt: skip

    def _log_evaluation(self, kind: str, split: str, found: Metrics) -> None:
        """`kind`: eval of an epoch, or final of the best weights."""
        state = self.progress
        self.logbook.row(
            kind,
            split=split,
            step=state.step,
            epoch=round(state.step / self.plan.steps, 4),
            **asdict(found),
        )
        log.info("%s: %s %s %.2f %%", self._name, kind, split, 100 * found.top1)

    def _final(self) -> dict[str, Any]:
        """Evaluate best.pt on every split but train, and write result.json."""
        self.world.wait()
        network, state = self.kept.best(), self.progress
        result: dict[str, Any] = {
            "shard": self.spec.shard,
            "epochs": round(state.step / self.plan.steps, 2),
            "steps": state.step,
            "nan_grads": state.nan_grads,
            "train_seconds": round(state.seconds, 1),
            "steps_per_minute": round(
                60 * self._timed / max(state.seconds - state.timed_from, 1e-9), 1
            ),
            "parameters": sum(p.numel() for p in network.parameters()),
        }
        manifest, planes = self.data.manifest, self.spec.planes
        predictor = make_predictor(network, self.recipe, manifest, planes, self.world.device)
        for split in manifest.counts:
            if split != "train" and manifest.written(split):
                found = self._evaluate(predictor, self._test_loader(split))
                if found is None:
                    raise self._stopped()
                self._check_finite(split, found)
                result[split] = asdict(found)
                self._log_evaluation("final", split, found)
        if self.world.leads:
            self.run.finish(result)
        return result
