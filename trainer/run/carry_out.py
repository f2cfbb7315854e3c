"""Trains one run in this process, from its checks to its figures."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StoppedError, describe
from pipeline.format import manifest
from trainer.data.loader import check_samples
from trainer.data.selection import Prepared
from trainer.data.staging import staged
from trainer.models import others
from trainer.process.device import make_deterministic, pick_device
from trainer.process.stop import StopRequest, stop_requests
from trainer.process.world import World, joined
from trainer.record.rundir import RunDir, shard_of
from trainer.record.status import Status
from trainer.reports.report import figures
from trainer.run.context import RunContext
from trainer.run.fit import ProgressBar, final_figures, fit
from trainer.run.recorder import Recorder
from trainer.run.setup import remarks
from trainer.run.spec import RunSpec
from trainer.run.store import CheckpointStore

log = logging.getLogger(__name__)


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
    folder = Path(spec.execution.stage) if spec.execution.stage else None
    with (
        staged(data, spec.planes, folder) as data,
        stop_requests() as stop,
        joined(device) as world,
    ):
        if not world.leads:
            logging.getLogger("trainer").setLevel(logging.ERROR)
            progress_bar = _silent
        with run.locked() if world.leads else nullcontext(), _status(run, world) as status:
            weights = first_weights(spec, data)
            if world.leads:
                run.check(recipe, data, spec.planes, weights)
            context = RunContext.build(spec, data, world, weights)
            if world.leads:
                for line in remarks(recipe, context.plan):
                    log.warning("%s: %s", context.name, line)
                source = others.source(recipe.model, spec.code)
                run.check_source(source)
                run.start(recipe, data, spec.planes, weights, source)
                spec.save()
            world.wait_long()  # the first one may have read all files of the shard
            result = _train(context, stop, progress_bar, status)
            if world.leads:
                run.finish(result)
    return f"{run.path}: {figures(result)}" if world.leads else ""


def _train(
    context: RunContext, stop: StopRequest, progress_bar: ProgressBar, status: Status | None
) -> dict[str, Any]:
    """From the last checkpoint, if there is one, to the figures of the best network."""
    store = CheckpointStore(context, status)
    store.resume()
    with closing(Recorder(context, store.progress, status)) as recorder:
        fit(context, store, recorder, stop, progress_bar)
        return final_figures(context, store, recorder, stop)


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
def _status(run: RunDir, world: World) -> Iterator[Status | None]:
    """Keep what the run is doing, and how it ended, where `spectral status` finds it."""
    if not world.leads:
        yield None
        return
    status = Status(run.path)
    try:
        with status.beating():
            yield status
    except BaseException as error:
        with suppress(OSError):
            if isinstance(error, StoppedError):
                status.update(state="stopped")
            elif isinstance(error, Exception):
                known = describe(error) if isinstance(error, OSError) else str(error)
                status.update(state="failed", error=known or type(error).__name__)
            else:  # Ctrl-C: what was done since the last checkpoint is lost
                status.update(state="interrupted")
        raise
    status.update(state="finished")


def _silent(name: str, total: int, unit: str) -> Any:
    return nullcontext(lambda count, note: None)
