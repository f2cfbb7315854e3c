"""What of a run outlives the process: its last checkpoint, the one before, the best network.

The best network is written in two steps, since it and the checkpoint that calls it the best are
two files: first beside, then the checkpoint, then it is renamed. Whatever moment the process is
killed in, the checkpoint that a later one goes on from has its own best network.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import DamagedError
from trainer.record import checkpoint
from trainer.record.rundir import RunDir
from trainer.record.status import Status
from trainer.record.weights import load_weights, save_weights
from trainer.run.context import RunContext
from trainer.run.evaluate import Metrics

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is; kept in its checkpoint. `evaluated`: the step whose figures are known;
    `best_step`: the step whose network is the best, -1 if there is none; `seconds`: of training,
    without evaluation; `timed_from`: those before the steps whose speed is reported.
    """

    step: int = 0
    evaluated: int = 0
    nan_grads: int = 0
    bad_in_a_row: int = 0
    best_step: int = -1
    best_top1: float = -1.0
    best_nll: float = float("inf")
    seconds: float = 0.0
    timed_from: float = 0.0


class CheckpointStore:
    """Progress and the stepper's state of one run, on disk and back."""

    def __init__(self, context: RunContext, status: Status | None = None) -> None:
        self._run, self._world = RunDir(context.spec.directory), context.world
        self._stepper, self._steps = context.stepper, context.steps
        self._facts = {
            "shard": context.spec.shard,
            "deterministic": context.spec.execution.deterministic,
        }
        self._status = status
        self.progress = Progress()

    def save(self) -> None:
        """Write last.pt; called by all processes, the first one writes."""
        if not self._world.leads:
            return
        content = {**self._stepper.state(), "progress": asdict(self.progress), **self._facts}
        content |= {"threads": torch.get_num_threads(), "processes": self._world.size}
        checkpoint.save_keeping(self._run.last, self._run.previous, content)
        if self._status is not None:
            self._status.update(saved=self.progress.step)

    def resume(self) -> None:
        """Go on from last.pt, if there is one."""
        run, world = self._run, self._world
        content = checkpoint.load_newest(run.last, run.previous, world.device)
        if content is None:
            return
        try:
            self._stepper.load_state(content)
            self.progress = Progress(**content["progress"])
            threads, processes = int(content["threads"]), int(content["processes"])
            self._check(content, threads)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            problem = str(error).splitlines()[0]
            raise DamagedError(f"{run.last} does not fit this run: {problem}") from error
        world.wait()  # the first process moves files that all have to see
        if world.leads:
            self._find_best()
        world.wait()
        if self.progress.best_step >= 0 and not run.best.exists():
            self._forget_best()
        log.info("%s: resuming after step %d of %d", run.path, self.progress.step, self._steps)
        if processes != world.size:
            log.info("by %d processes, before by %d: sums are rounded otherwise",
                     world.size, processes)  # fmt: skip
        if threads != torch.get_num_threads():
            log.info("set to %d threads as before, for the same rounding", threads)
            torch.set_num_threads(threads)

    def _check(self, content: dict[str, Any], threads: int) -> None:
        step, shard = self.progress.step, self._facts["shard"]
        if not (0 <= self.progress.evaluated <= step <= self._steps and threads > 0):
            raise ValueError(f"step {step} of {self._steps}, {threads} threads")
        if content["shard"] != shard:
            raise ValueError(f"it is of shard {content['shard']}, not of {shard}")

    def _find_best(self) -> None:
        """Found out now, not after all steps: the best network that the checkpoint speaks of."""
        run, step = self._run, self.progress.best_step
        if step < 0:
            return
        if _step_of(run.new_best) == step:
            run.new_best.replace(run.best)
        elif _step_of(run.best) != step:
            log.warning(
                "%s is missing, damaged or of another step: the best network from here on counts",
                run.best,
            )
            run.best.unlink(missing_ok=True)
        run.new_best.unlink(missing_ok=True)

    def _forget_best(self) -> None:
        state = self.progress
        state.best_step, state.best_top1, state.best_nll = -1, -1.0, float("inf")
        if state.evaluated:
            self._keep()

    def keep_if_best(self, found: Metrics | None) -> None:
        """Keep the network if none before had these figures; always if there are none."""
        state = self.progress
        if found is not None:
            if (found.top1, -found.nll) <= (state.best_top1, -state.best_nll):
                return
            state.best_top1, state.best_nll = found.top1, found.nll
        self._keep()

    def _keep(self) -> None:
        self.progress.best_step = self.progress.step
        network = self._stepper.evaluated().state_dict()
        if self._world.leads:
            save_weights(self._run.new_best, network, {"step": self.progress.step})
            self.save()
            self._run.new_best.replace(self._run.best)

    def best(self) -> nn.Module:
        """The best network; what the stepper had in it is gone."""
        network = self._stepper.evaluated()
        network.load_state_dict(load_weights(self._run.best).tensors)
        return network


def _step_of(path: Path) -> int | None:
    """Of a file of weights that is whole; else None."""
    try:
        return int(load_weights(path).facts["step"] or 0)
    except (DamagedError, OSError, KeyError, TypeError):
        return None
