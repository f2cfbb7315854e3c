"""A schedule and a step in; the learning rate of that step out.

Pure functions of the step, so that nothing of a schedule is kept in a checkpoint. Rates change
every step, where torch's schedulers are mostly called once an epoch; at the ends of epochs both
agree (tests compare them with torch's).
"""

import math
from collections.abc import Callable

from trainer.recipes.recipe import Schedule

_START, _END = 25.0, 1e4  # torch's OneCycleLR: first rate = peak / 25, last = first / 10,000
_RISING = 0.3  # of all steps


def lr_at(schedule: Schedule, peak: float, step: int, *, steps: int, per_epoch: int) -> float:
    """Learning rate of step 0 ≤ step ≤ steps, `per_epoch` of them an epoch. Linear from almost
    0 to the schedule's own over the warm-up, then what its name says.
    """
    warmup = schedule.warmup_epochs * per_epoch + schedule.warmup_share * steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return _SHAPES[schedule.name](schedule, peak, step, steps, per_epoch, warmup)


def _constant(
    schedule: Schedule, peak: float, step: int, steps: int, per_epoch: int, warmup: float
) -> float:
    return peak


def _cosine(
    schedule: Schedule, peak: float, step: int, steps: int, per_epoch: int, warmup: float
) -> float:
    """From the end of the warm-up to `final_lr` at the last step."""
    span = max(steps - 1 - warmup, 1)
    return _half_wave(peak, schedule.final_lr, min((step - warmup) / span, 1.0))


def _linear(
    schedule: Schedule, peak: float, step: int, steps: int, per_epoch: int, warmup: float
) -> float:
    """From the end of the warm-up to `final_lr` at the last step."""
    progress = min((step - warmup) / max(steps - 1 - warmup, 1), 1.0)
    return peak + (schedule.final_lr - peak) * progress


def _sgdr(
    schedule: Schedule, peak: float, step: int, steps: int, per_epoch: int, warmup: float
) -> float:
    """Cosines that start again at the peak, each `period_factor` times as long as the one before
    (Loshchilov & Hutter, "SGDR").
    """
    at, period = (step - warmup) / per_epoch, schedule.period_epochs
    while at >= period:
        at, period = at - period, period * schedule.period_factor
    return _half_wave(peak, schedule.final_lr, at / period)


def _multistep(
    schedule: Schedule, peak: float, step: int, steps: int, per_epoch: int, warmup: float
) -> float:
    """Times `gamma` at each milestone, in epochs from the start."""
    passed = sum(step >= milestone * per_epoch for milestone in schedule.milestones)
    return peak * schedule.gamma**passed


def _step(
    schedule: Schedule, peak: float, step: int, steps: int, per_epoch: int, warmup: float
) -> float:
    """Times `gamma` every `period_epochs`."""
    return peak * schedule.gamma ** int(step / per_epoch / schedule.period_epochs)


def _one_cycle(
    schedule: Schedule, peak: float, step: int, steps: int, per_epoch: int, warmup: float
) -> float:
    """Up for 30 % of the steps, then down to almost nothing (Smith & Topin), as torch does it."""
    top = _RISING * steps - 1
    if step <= top:
        return _half_wave(peak / _START, peak, step / max(top, 1))
    return _half_wave(peak, peak / _START / _END, min((step - top) / (steps - 1 - top), 1.0))


def _half_wave(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


_SHAPES: dict[str, Callable[[Schedule, float, int, int, int, float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "sgdr": _sgdr,
    "multistep": _multistep,
    "step": _step,
    "onecycle": _one_cycle,
}
