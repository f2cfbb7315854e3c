"""The loop of training: steps, and between them evaluations, checkpoints and rows of the log.

A run may be killed at any moment: it goes on from its last checkpoint, and since order and
augmentation are functions of (seed, epoch, step), it ends with the same weights.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from enum import IntEnum
from typing import Any

from pipeline.errors import SpectralError, StoppedError
from trainer.data.feed import Feed
from trainer.data.selection import selection_split
from trainer.process.stop import StopRequest
from trainer.run.context import RunContext
from trainer.run.evaluate import Metrics, Predictor, evaluate
from trainer.run.execution import Due
from trainer.run.meter import Meter
from trainer.run.network import make_predictor
from trainer.run.recorder import Recorder
from trainer.run.store import CheckpointStore, Progress

log = logging.getLogger(__name__)
ProgressBar = Callable[[str, int, str], AbstractContextManager[Callable[[int, str], None]]]
TIMED_STEPS = 5000  # the last ones, whose speed is reported (source 003)
MAX_BAD_STEPS = 50  # in a row, with gradients that are not finite
LOG_SECONDS = 10.0
AGREE_EVERY = 16  # steps, after which several processes ask each other what one of them wants


class Action(IntEnum):
    """What is due after a step; each includes those before it."""

    NOTHING = 0
    LOG = 1
    SAVE = 2
    STOP = 3


class DivergedError(SpectralError):
    """The gradients are not finite any more."""


def fit(
    context: RunContext,
    store: CheckpointStore,
    recorder: Recorder,
    stop: StopRequest,
    progress_bar: ProgressBar,
) -> None:
    """All steps that are left; the store has the best network afterwards."""
    plan, steps, state = context.plan, context.steps, store.progress
    split = selection_split(context.data.manifest)
    if split is None:
        log.warning("%s: calib is empty, so the last epoch counts as the best", context.name)
    choosing = context.loader(split) if split else None
    feed = context.open_feed(fresh=state.step == 0)
    meter, saving = Meter(context.world), Due(context.spec.execution.save_every)
    every = context.recipe.eval_every or plan.steps
    recorder.started(feed.kind)
    with progress_bar(context.name, steps - state.step, "steps") as advance:
        while state.evaluated < steps:
            until = min((state.evaluated // every + 1) * every, steps)  # the next evaluation
            context.stepper.network.train()
            with closing(context.batches(feed, state.step, until)) as batches:
                for values, labels in meter.waiting(batches):
                    context.train_step(values, labels, state.step)
                    state.step += 1
                    meter.add(plan.batch)
                    advance(1, f"epoch {(state.step - 1) // plan.steps + 1}/{context.epochs}")
                    action = _action(context, state.step, until, meter, saving, stop)
                    if action >= Action.LOG:
                        _count(context, store, recorder, meter)
                    # last.pt is of finite gradients, unless there is no other moment
                    if action == Action.STOP or (action == Action.SAVE and not state.bad_in_a_row):
                        store.save()
                        saving.done()
                    if action == Action.STOP:
                        raise _stopped(context, state.step, stop)
            _choose(context, store, recorder, choosing, split, stop)
            meter.restart()
    store.save()


def _action(
    context: RunContext, step: int, until: int, meter: Meter, saving: Due, stop: StopRequest
) -> Action:
    """What all processes do after a step. They ask each other only after some steps, the same ones
    in each process, since asking makes all of them wait.
    """
    marked = step in (until, context.steps - timed_steps(context)) or step % context.plan.steps == 0
    if context.world.size > 1 and not marked:
        own = context.spec.execution.save_every.steps or AGREE_EVERY
        if step % AGREE_EVERY and step % own:
            return Action.NOTHING
    if stop:
        wanted = Action.STOP
    elif saving.after(step):
        wanted = Action.SAVE
    elif marked or meter.age >= LOG_SECONDS:
        wanted = Action.LOG
    else:
        wanted = Action.NOTHING
    return Action(context.world.highest(wanted))


def timed_steps(context: RunContext) -> int:
    """How many of the last steps the reported speed is of."""
    return min(context.steps, TIMED_STEPS)


def _count(context: RunContext, store: CheckpointStore, recorder: Recorder, meter: Meter) -> None:
    """A row about the steps since the last one; waits for the device."""
    state, found = store.progress, context.stepper.read_counters()
    state.seconds += meter.age
    if state.step == context.steps - timed_steps(context):
        state.timed_from = state.seconds
    state.nan_grads, state.bad_in_a_row = found.skipped, found.in_a_row
    recorder.trained(meter.row(found))
    if found.longest >= MAX_BAD_STEPS:
        raise DivergedError(
            f"{context.spec.directory}: gradients were not finite in {MAX_BAD_STEPS} steps in a "
            f"row (by step {state.step}); last.pt, if any, is from before. Try a lower optimizer.lr"
        )


def _choose(
    context: RunContext,
    store: CheckpointStore,
    recorder: Recorder,
    choosing: Feed | None,
    split: str | None,
    stop: StopRequest,
) -> None:
    """Evaluate what has been trained; keep its weights if they are the best."""
    state, found = store.progress, None
    if choosing is not None:
        try:
            found = _measured(context, state, context.predictor(), choosing, str(split), stop)
        except StoppedError:
            store.save()
            raise
    state.evaluated = state.step
    if found is not None:
        recorder.evaluated("eval", str(split), found)
    if found or state.step == context.steps:
        store.keep_if_best(found)


def final_figures(
    context: RunContext, store: CheckpointStore, recorder: Recorder, stop: StopRequest
) -> dict[str, Any]:
    """The best network, measured on every split but train."""
    context.world.wait()
    network, state, manifest = store.best(), store.progress, context.data.manifest
    timed = max(state.seconds - state.timed_from, 1e-9)
    result: dict[str, Any] = {
        "shard": context.spec.shard,
        "epochs": round(state.step / context.plan.steps, 2),
        "steps": state.step,
        "best_step": state.best_step,
        "nan_grads": state.nan_grads,
        "train_seconds": round(state.seconds, 1),
        "steps_per_minute": round(60 * timed_steps(context) / timed, 1),
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    device, planes = context.world.device, context.spec.planes
    predictor = make_predictor(network, context.recipe, manifest, planes, device)
    for split in manifest.counts:
        if split != "train" and manifest.written(split):
            loader = context.test_loader(split)
            found = _measured(context, state, predictor, loader, split, stop)
            result[split] = asdict(found)
            recorder.evaluated("final", split, found)
    return result


def _measured(
    context: RunContext,
    state: Progress,
    predictor: Predictor,
    feed: Feed,
    split: str,
    stop: StopRequest,
) -> Metrics:
    """Figures of a network that is still one; a stop that was asked for meanwhile is obeyed."""
    found = evaluate(predictor, feed, context.world, stop)
    step = state.step
    if found is None:
        raise _stopped(context, step, stop)
    if not math.isfinite(found.nll):
        raise DivergedError(
            f"{context.spec.directory}: the network's answers on {split} are not finite after step "
            f"{step}: remove the directory, and try a lower optimizer.lr"
        )
    return found


def _stopped(context: RunContext, step: int, stop: StopRequest) -> StoppedError:
    return StoppedError(
        f"{context.spec.directory}: stopped by {stop.name or 'a signal'} after step {step} of "
        f"{context.steps}, all is saved: the same command goes on"
    )
