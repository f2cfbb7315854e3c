"""Trains one run in this process, from its checks to its figures."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, SpectralError
from pipeline.format import manifest
from trainer.data.loader import check_samples
from trainer.data.selection import Prepared
from trainer.process.device import make_deterministic, pick_device
from trainer.process.stop import stop_requests
from trainer.process.world import World, joined
from trainer.record.rundir import RunDir, shard_of
from trainer.record.stderr import note_failure
from trainer.reports.report import figures
from trainer.run.spec import RunSpec
from trainer.run.train import ProgressBar, Trainer


def carry_out(spec: RunSpec, progress_bar: ProgressBar) -> str:
    """Train it, or report that it is finished; its figures in a line. Under torchrun all
    processes of the run call this, and the first one writes.
    """
    run, recipe = RunDir(spec.directory), spec.recipe
    data = Prepared(spec.data, manifest.load(spec.data))
    if result := run.finished(recipe, data.manifest):
        return f"{run.path}: already finished, {figures(result)}"
    _check_planes(spec, data)
    device = pick_device()
    make_deterministic(spec.execution.deterministic)
    with stop_requests() as stop, joined(device) as world:
        if not world.leads:
            logging.getLogger("trainer").setLevel(logging.ERROR)
            progress_bar = _silent
        with run.locked() if world.leads else nullcontext(), _noted(run, world):
            weights = first_weights(spec, data)
            if world.leads:
                run.check(recipe, data, spec.planes, weights)
            trainer = Trainer(spec, data, world, stop, weights)
            if world.leads:
                run.start(recipe, data, spec.planes, weights)
                spec.save()
            world.wait()
            result = trainer.train(progress_bar)
    return f"{run.path}: {figures(result)}" if world.leads else ""


def first_weights(spec: RunSpec, data: Prepared) -> Path | None:
    """The file that a run starts from, if not from random weights. The other run's recipe may be
    another one: what has to fit is its network.
    """
    if spec.init_run is None:
        return spec.init
    first = RunDir(spec.init_run)
    if first.finished(None, data.manifest) is None:
        shard = shard_of(first.path) or first.path.name
        raise ConfigError(f"--init-shard {shard}: {first.path} has not finished: train it first")
    return first.best


def _check_planes(spec: RunSpec, data: Prepared) -> None:
    """Look at the files of its planes now, rather than after all epochs."""
    for k in spec.planes:
        data.manifest.check_shard(k)
        for split in data.manifest.counts:
            if written := data.manifest.written(split):
                check_samples(data.shard_path(split, k), written, len(data.manifest.classes))


@contextmanager
def _noted(run: RunDir, world: World) -> Iterator[None]:
    """Keep why a run failed where `spectral runs` finds it."""
    try:
        yield
    except (SpectralError, OSError) as error:
        if world.leads:
            with suppress(OSError):
                note_failure(run.path, error)
        raise


def _silent(name: str, total: int, unit: str) -> Any:
    return nullcontext(lambda count, note: None)
