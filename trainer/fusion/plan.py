"""Plans the training of planes from a pilot: a few epochs of each, fused.

The rule: planes without which the fused pilot would be no worse, on the split that weights are
fitted on, are left out. The plane that is best alone is trained first and gets half of the cost;
the others start from its weights and share the rest by their learned weights. On CIFAR-10 at equal
cost such a plan (with equal shares) reached 86.0 % where equal epochs for all planes gave 84.6
(docs/results.md).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from trainer.data.selection import Prepared
from trainer.fusion import weights
from trainer.fusion.ensemble import Options, ProgressBar, fitting_answers, splits
from trainer.fusion.members import finished_members
from trainer.fusion.panel import Panel
from trainer.fusion.pooling import Pooling
from trainer.fusion.weights import Answers
from trainer.recipes.plan import PlannedRun, TrainingPlan

FIRST = 0.5  # of the cost, for the plane that is trained first
_SURE = 1.645  # standard errors: what a plane adds is above 0 with 95 %


@dataclass(frozen=True)
class Worth:
    """Of a plane in the pilot: its accuracy alone, its learned weight, by how much the NLL rises
    without it (nats), and the standard error of that.
    """

    shard: str
    top1: float
    weight: float
    rise: float
    error: float

    @property
    def adds(self) -> bool:
        """Whether that is more than chance."""
        return self.rise > _SURE * self.error


def make_plan(
    data: Prepared,
    group: Path,
    device: torch.device,
    progress_bar: ProgressBar,
    *,
    epochs: int,
    recipe: str,
    settings: tuple[str, ...],
    name: str,
) -> tuple[TrainingPlan, str]:
    """Of so many epochs over all planes together, from the finished runs of a pilot's group; and
    remarks on what it was made from.
    """
    members = finished_members(group, data)
    if any(len(member.planes) > 1 for member in members):
        raise ConfigError(f"{group} has networks on several planes: a plan is of single ones")
    fitted_on, _ = splits(data)
    panel = Panel(members, data, device)
    answers = fitting_answers(panel, fitted_on, Options().calib_samples, progress_bar)
    if answers is None:
        raise ConfigError(f"{data.directory} has no split to judge a pilot by: use --calib")
    worths = worth_of_each(answers, [member.shard for member in members])
    plan = TrainingPlan(name, recipe, settings, allocate(worths, epochs))
    planned = {run.shard for run in plan.runs}
    left_out = [worth.shard for worth in worths if worth.shard not in planned]
    remarks = [
        f"From the pilot {group.name} on {data.described}, judged by {len(answers.labels):,} "
        f"samples of {fitted_on}:",
        *(
            f"plane {w.shard}: {w.top1:.2%} alone, weight {w.weight:.3f}; without it the NLL "
            f"rises by {w.rise:.4f} ± {w.error:.4f}"
            for w in worths
        ),
    ]
    if left_out:
        remarks.append(f"Left out, as they add no more than chance: {', '.join(left_out)}.")
    return plan, "\n".join(remarks)


def worth_of_each(answers: Answers, shards: list[str]) -> list[Worth]:
    """By fitting the weights anew without each."""
    networks = range(len(shards))
    best = weights.learned(answers)
    if not any(best):
        raise ConfigError("the pilot knows nothing yet: train it longer")
    base = _losses(answers, best)
    found = []
    for k in networks:
        others = weights.learned(answers, [i for i in networks if i != k]) if best[k] else best
        rise = _losses(answers, others) - base
        error = float(rise.std()) / len(rise) ** 0.5
        top1 = weights.top1(answers.logits[k], answers)
        found.append(Worth(shards[k], top1, best[k], float(rise.mean()), error))
    return found


def _losses(answers: Answers, found: list[float]) -> Tensor:
    """(n,) nats."""
    fused = weights.pool(answers, Pooling(tuple(found)))
    return F.cross_entropy(fused.double(), answers.labels, reduction="none")


def allocate(worths: list[Worth], epochs: int) -> tuple[PlannedRun, ...]:
    """Epochs that add up to `epochs`, each run at least one."""
    first = max(worths, key=lambda worth: worth.top1)
    others = sorted(
        (worth for worth in worths if worth.adds and worth is not first),
        key=lambda worth: -worth.weight,
    )
    of_first = max(1, round(epochs * FIRST)) if others else epochs
    left = epochs - of_first
    others = others[:left]
    total = sum(worth.weight for worth in others)
    ends = [0]
    for at in range(1, len(others) + 1):  # each at least one, and none is lost to rounding
        share = left * sum(w.weight for w in others[:at]) / total
        ends.append(min(max(round(share), ends[-1] + 1), left - (len(others) - at)))
    if others:
        ends[-1] = left
    runs = [
        PlannedRun(worth.shard, end - start, after=first.shard)
        for worth, start, end in zip(others, ends, ends[1:], strict=False)
    ]
    return PlannedRun(first.shard, of_first), *runs
