"""Tells what becomes of a run: rows of log.jsonl, status.json, and lines for people."""

import logging
from dataclasses import asdict
from typing import Any

import torch

from trainer.record.logbook import Logbook
from trainer.record.status import Status
from trainer.record.trackers import tracker
from trainer.run.context import RunContext
from trainer.run.evaluate import Metrics
from trainer.run.store import Progress

log = logging.getLogger(__name__)


class Recorder:
    """Of one run. Only its first process writes; `status` is the file that it keeps up to date."""

    def __init__(self, context: RunContext, progress: Progress, status: Status | None) -> None:
        self._context, self._progress, self._status = context, progress, status
        spec, leads, found = context.spec, context.world.leads, None
        if leads and (name := spec.execution.log_to) is not None:
            found = tracker(name, spec.directory, asdict(spec.recipe), progress.step)
        self._logbook = Logbook(spec.directory, writes=leads, tracker=found)

    def started(self, feed: str) -> None:
        """The first step is about to be done, by batches from a feed of this kind."""
        context = self._context
        self._row(
            "start",
            steps=context.steps,
            steps_per_epoch=context.plan.steps,
            epochs=context.epochs,
            batch_size=context.plan.batch,
            feed=feed,
            device=context.world.device.type,
            precision=str(context.stepper.dtype or torch.float32).removeprefix("torch."),
            processes=context.world.size,
            threads=torch.get_num_threads(),
        )
        self._update(state="training")

    def trained(self, figures: dict[str, Any]) -> None:
        """Steps have been done; `figures`: loss and speed since the last row."""
        context, state = self._context, self._progress
        lr = context.lr(state.step - 1)  # of the last step
        self._row("train", epoch=self._epoch, lr=lr, nan_grads=state.nan_grads, **figures)
        self._update(state="training", images_per_s=figures["images_per_s"])
        if state.step % context.plan.steps == 0 or state.step == context.steps:
            log.info(
                "%s: epoch %d/%d, loss %.4f, %.0f images/s",
                context.name, state.step // context.plan.steps, context.epochs,
                figures["loss"] or float("nan"), figures["images_per_s"],
            )  # fmt: skip

    def evaluated(self, kind: str, split: str, found: Metrics) -> None:
        """`kind`: eval of what has been trained so far, or final of the best network."""
        self._row(kind, split=split, epoch=self._epoch, **asdict(found))
        self._update(state="evaluating" if kind == "final" else "training")
        log.info("%s: %s %s %.2f %%", self._context.name, kind, split, 100 * found.top1)

    def close(self) -> None:
        """Flush what is still to be written."""
        self._logbook.close()

    @property
    def _epoch(self) -> float:
        return round(self._progress.step / self._context.plan.steps, 4)

    def _row(self, kind: str, **figures: Any) -> None:
        self._logbook.row(kind, step=self._progress.step, **figures)

    def _update(self, **known: Any) -> None:
        if self._status is not None:
            self._status.update(step=self._progress.step, steps=self._context.steps, **known)
