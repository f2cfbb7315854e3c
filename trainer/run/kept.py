"""The state of a run in; what of it outlives the process: last.pt, the one before, best.pt."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import DamagedError
from trainer.process.world import World
from trainer.record import checkpoint
from trainer.record.rundir import RunDir
from trainer.run.evaluate import Metrics
from trainer.run.step import Stepper

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is; kept in its checkpoint. `evaluated`: the step whose figures are known;
    `seconds`: of training, without evaluation; `timed_from`: those before the steps whose
    speed is reported.
    """

    step: int = 0
    evaluated: int = 0
    nan_grads: int = 0
    bad_in_a_row: int = 0
    best_top1: float = -1.0
    best_nll: float = float("inf")
    seconds: float = 0.0
    timed_from: float = 0.0


class Kept:
    """Progress and the stepper's state, on disk and back. `facts`: kept with them, for people."""

    def __init__(self, run: RunDir, stepper: Stepper, world: World, facts: dict[str, Any]) -> None:
        self.run, self._stepper, self._world, self._facts = run, stepper, world, facts
        self.progress = Progress()

    def save(self) -> None:
        """Write last.pt; called by all processes, the first one writes."""
        if not self._world.leads:
            return
        content = {**self._stepper.state(), "progress": asdict(self.progress), **self._facts}
        content |= {"threads": torch.get_num_threads(), "processes": self._world.size}
        checkpoint.save_keeping(self.run.last, self.run.previous, content)

    def resume(self, steps: int) -> None:
        """Go on from last.pt, if there is one, of a run of `steps` steps."""
        run, world = self.run, self._world
        content = checkpoint.load_newest(run.last, run.previous, world.device)
        if content is None:
            return
        try:
            self._stepper.load_state(content)
            self.progress = Progress(**content["progress"])
            threads, processes = int(content["threads"]), int(content["processes"])
            step, shard = self.progress.step, self._facts.get("shard")
            if not (0 <= self.progress.evaluated <= step <= steps and threads > 0):
                raise ValueError(f"step {step} of {steps}, {threads} threads")
            if content["shard"] != shard:
                raise ValueError(f"it is of shard {content['shard']}, not of {shard}")
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            problem = str(error).splitlines()[0]
            raise DamagedError(f"{run.last} does not fit this run: {problem}") from error
        self._check_best()
        log.info("%s: resuming after step %d of %d", run.path, self.progress.step, steps)
        if processes != world.size:
            log.info("by %d processes, before by %d: sums are rounded otherwise",
                     world.size, processes)  # fmt: skip
        if threads != torch.get_num_threads():
            log.info("set to %d threads as before, for the same rounding", threads)
            torch.set_num_threads(threads)

    def _check_best(self) -> None:
        """Found out now, not after all steps: the best weights may have been lost."""
        if self.progress.best_top1 < 0 or self._whole(self.run.best):
            return
        log.warning("%s is missing or damaged: the best epoch from here on counts", self.run.best)
        self.progress.best_top1, self.progress.best_nll = -1.0, float("inf")
        if self.progress.evaluated:
            self._save_best()

    def _whole(self, path: Path) -> bool:
        try:
            checkpoint.load(path, torch.device("cpu"))
        except (DamagedError, OSError):
            return False
        return True

    def keep_if_best(self, found: Metrics | None) -> None:
        """Write best.pt if no epoch before had these figures; always if there are none."""
        state = self.progress
        if found is not None:
            if (found.top1, -found.nll) <= (state.best_top1, -state.best_nll):
                return
            state.best_top1, state.best_nll = found.top1, found.nll
        self._save_best()

    def _save_best(self) -> None:
        network = self._stepper.evaluated().state_dict()
        if self._world.leads:
            progress = {"step": self.progress.step}
            checkpoint.save(self.run.best, {"model": network, "progress": progress})

    def best(self) -> nn.Module:
        """The network with the best weights; what the stepper had in it is gone."""
        network = self._stepper.evaluated()
        network.load_state_dict(checkpoint.load(self.run.best, self._world.device)["model"])
        return network
