"""A prepared data set and shard numbers in; trained networks out, one line said of each."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.catalogue import catalogue
from pipeline.cpus import usable_cores
from pipeline.errors import ConfigError, SpectralError, StoppedError
from pipeline.format.beton import digest
from trainer.data.loader import check_samples
from trainer.data.selection import Prepared
from trainer.jobs.queue import Entry, Job, Queue
from trainer.jobs.slots import Slot, Wanted, make_slots, visible_devices
from trainer.jobs.watch import watch
from trainer.process.device import make_deterministic, pick_device
from trainer.process.mps import shared_gpus
from trainer.process.stop import stop_requests
from trainer.process.world import World, joined
from trainer.recipes.cookbook import resolve
from trainer.recipes.recipe import Recipe
from trainer.record.rundir import RunDir, group_directory
from trainer.record.stderr import note_failure
from trainer.reports.report import figures, spread
from trainer.run import setup
from trainer.run.execution import Execution
from trainer.run.train import ProgressBar, Trainer

log = logging.getLogger(__name__)
SMALL_PLANE = 64  # px; what an own data set's default recipe depends on


def default_recipe(data: Prepared) -> str:
    """The data set's recipe from datasets.toml; for others by the size of the plane."""
    prep = data.manifest.preparation
    if spec := catalogue().get(prep.dataset):
        return spec.recipe
    return "cifar-resnet20" if prep.input_shape[1] <= SMALL_PLANE else "resnet18"


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one recipe on one data set. `init`: a file of weights that all start from;
    `init_shard`: the shard whose best weights the others start from.
    """

    data: Prepared
    recipe: Recipe
    path: Path
    init: Path | None = None
    init_shard: int | None = None

    def weights(self, k: int) -> Path | None:
        """What shard `k` starts from, if not from random weights."""
        if self.init_shard is None or self.init_shard == k:
            return self.init
        first = RunDir.of(self.path, self.init_shard)
        if first.finished(self.recipe, self.data.manifest) is None:
            raise ConfigError(
                f"--init-shard {self.init_shard}: {first.path} has not finished: train it first"
            )
        return first.best


def select_runs(
    data: Prepared,
    recipe_name: str | None,
    settings: tuple[str, ...],
    name: str | None,
    runs: Path,
    init: Path | None = None,
    init_shard: int | None = None,
) -> Group:
    """Which runs the options of the command line mean. A file of first weights is in their
    name; a first shard is not, it belongs to the same ones.
    """
    found = resolve(recipe_name or default_recipe(data), settings)
    recipe, label = found.recipe, found.label
    setup.check(recipe, data)
    if name is not None and (not name or "/" in name or name.startswith(".")):
        raise ConfigError(f"--name {name}: it names a folder, so no '/' or leading '.'")
    if init is not None:
        label += f"+init={init.stem}-{digest(init)[:6]}"  # every run has a best.pt
    if init_shard is not None:
        data.manifest.check_shard(init_shard)
    path = group_directory(runs, data, name or label)
    return Group(data=data, recipe=recipe, path=path, init=init, init_shard=init_shard)


def seeded(
    data: Prepared,
    recipe_name: str | None,
    settings: tuple[str, ...],
    name: str | None,
    runs: Path,
    init: Path | None,
    init_shard: int | None,
    seeds: int,
) -> list[tuple[Group, list[str]]]:
    """`select_runs` for each of several seeds, from the recipe's own on, with the options that
    make the same of it on a command line without --seeds and --name.
    """
    first = select_runs(data, recipe_name, settings, name, runs, init, init_shard)
    if seeds == 1:
        return [(first, [] if name is None else [f"--name={name}"])]
    found = []
    for seed in range(first.recipe.seed, first.recipe.seed + seeds):
        own = f"seed={seed}"
        folder = None if name is None else f"{name}+{own}"
        same = (*settings, own)
        group = select_runs(data, recipe_name, same, folder, runs, init, init_shard)
        found.append((group, [f"--set={own}"] + ([f"--name={folder}"] if folder else [])))
    return found


def train_shards(
    group: Group,
    shards: list[int],
    execution: Execution,
    wanted: Wanted,
    arguments: list[str],
    progress_bar: ProgressBar,
) -> Iterator[str]:
    """Train one shard here, or several in processes of their own; a line of each."""
    if wanted.needs_queue(len(shards), os.environ):
        yield from queue_shards(group, shards, wanted, arguments)
        return
    slots_here(wanted, 1)  # refuses options that make no sense on this machine
    if line := train_shard(group, shards[0], execution, progress_bar):
        yield line


def spread_of(groups: list[Group], k: int) -> str:
    """What shard `k` reached with several seeds, in a line."""
    found = [
        RunDir.of(group.path, k).finished(group.recipe, group.data.manifest) for group in groups
    ]
    return f"shard {k}, {spread([result for result in found if result])}"


def train_shard(group: Group, k: int, execution: Execution, progress_bar: ProgressBar) -> str:
    """Train one shard, or report that it is finished; its figures in a line. Under torchrun
    all processes of the job call it, and the first one writes.
    """
    run, data, recipe = RunDir.of(group.path, k), group.data, group.recipe
    data.manifest.check_shard(k)
    if result := run.finished(recipe, data.manifest):
        return f"{run.path}: already finished, {figures(result)}"
    for split in data.manifest.counts:
        if data.manifest.written(split):  # found out now, not after all epochs
            classes, written = len(data.manifest.classes), data.manifest.written(split)
            check_samples(data.shard_path(split, k), written, classes)
    device = pick_device()
    make_deterministic(execution.deterministic)
    with stop_requests() as stop, joined(device) as world:
        if not world.leads:
            logging.getLogger("trainer").setLevel(logging.ERROR)
            progress_bar = _silent
        with run.locked() if world.leads else nullcontext(), _noted(run, world):
            weights = group.weights(k)
            if world.leads:
                run.check(recipe, data, k, weights)
            trainer = Trainer(data, k, recipe, run, world, stop, execution, weights)
            if world.leads:
                run.start(recipe, data, k, weights)
            world.wait()
            result = trainer.train(progress_bar)
    return f"{run.path}: {figures(result)}" if world.leads else ""


def queue_shards(
    group: Group, shards: list[int], wanted: Wanted, arguments: list[str]
) -> Iterator[str]:
    """Train shards in processes of their own, as many at a time as there are slots; finished ones
    are only reported. arguments: the command line of `train` but for --shard.
    """
    jobs = []
    for k in shards:
        run = RunDir.of(group.path, k)
        if result := run.finished(group.recipe, group.data.manifest):
            yield f"{run.path}: already finished, {figures(result)}"
            continue
        if group.init_shard not in shards:
            group.weights(k)  # refused now, rather than by every job
        command = (sys.executable, "-P", "-m", "cli", *arguments, "--shard", str(k))
        after = None if k == group.init_shard else group.init_shard
        jobs.append(Entry(Job(shard=k, directory=run.path, command=command, after=after)))
    slots = slots_here(wanted, max(1, len(jobs)))
    shared = any(slot.devices and slot.sharing > 1 for slot in slots)
    with ExitStack() as stack:
        if shared and jobs:
            os.environ.update(stack.enter_context(shared_gpus()))  # the jobs inherit it
        if jobs:
            Queue(jobs, slots, watch(jobs)).run()


def slots_here(wanted: Wanted, jobs: int) -> list[Slot]:
    """Where `jobs` of them run on this machine; ConfigError for what it does not have."""
    return make_slots(wanted, visible_devices(), usable_cores(), jobs)


@contextmanager
def _noted(run: RunDir, world: World) -> Iterator[None]:
    """Keep why a run failed where `spectral runs` finds it."""
    try:
        yield
    except StoppedError:
        raise
    except (SpectralError, OSError) as error:
        if world.leads:
            with suppress(OSError):
                note_failure(run.path, error)
        raise


def _silent(name: str, total: int, unit: str) -> Any:
    return nullcontext(lambda count, note: None)
