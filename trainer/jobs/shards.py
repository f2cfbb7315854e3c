"""Makes the specifications of the runs that a command asks for, and has them carried out."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.catalogue import catalogue
from pipeline.errors import ConfigError
from pipeline.format.beton import digest
from pipeline.limits import usable_cores
from trainer.data.selection import Prepared, parse_shards
from trainer.jobs.launch import PROGRAM
from trainer.jobs.queue import Entry, Job, Queue
from trainer.jobs.slots import Slot, Wanted, make_slots, visible_devices
from trainer.jobs.watch import watch
from trainer.models import others
from trainer.process.mps import shared_gpus
from trainer.recipes.cookbook import resolve
from trainer.recipes.plan import TrainingPlan
from trainer.record.rundir import RunDir, folder, group_directory
from trainer.reports.report import figures, spread
from trainer.run import setup
from trainer.run.carry_out import carry_out, first_weights
from trainer.run.execution import Execution
from trainer.run.fit import ProgressBar
from trainer.run.network import check_network
from trainer.run.spec import NAME, RunSpec

SMALL_PLANE = 64  # px; what an own data set's default recipe depends on


def default_recipe(data: Prepared) -> str:
    """The data set's recipe from datasets.toml; for others by the size of the plane."""
    prep = data.manifest.preparation
    if spec := catalogue().get(prep.dataset):
        return spec.recipe
    return "cifar-resnet20" if prep.input_shape[1] <= SMALL_PLANE else "resnet18"


def make_specs(
    data: Prepared,
    shards: Sequence[tuple[int, ...]],
    recipe_name: str | None,
    settings: tuple[str, ...],
    runs: Path,
    *,
    name: str | None = None,
    init: Path | None = None,
    init_shard: int | None = None,
    execution: Execution | None = None,
) -> list[RunSpec]:
    """One run for each shard, or group of planes that a network sees together. A file of first
    weights is in the name of their folder; a first shard is not, since it belongs to the same runs.
    """
    found = resolve(recipe_name or default_recipe(data), settings)
    setup.check(found.recipe, data)
    code = others.home(found.recipe.model)
    for count in {len(planes) for planes in shards}:
        check_network(found.recipe, data.manifest, count, code)
    if name is not None and (not name or "/" in name or name.startswith(".")):
        raise ConfigError(f"--name {name}: it names a folder, so no '/' or leading '.'")
    label = found.label
    if init is not None:
        init = init.absolute()
        label += f"+init={init.stem}-{digest(init)[:6]}"  # every run has a best.safetensors
    if init_shard is not None:
        data.manifest.check_shard(init_shard)
    group = group_directory(runs, data, name or label).absolute()
    first = None if init_shard is None else group / folder((init_shard,))
    specs = []
    for planes in shards:
        for k in planes:
            data.manifest.check_shard(k)
        before = None if planes == (init_shard,) else first
        specs.append(
            RunSpec(
                data=data.directory.absolute(),
                planes=planes,
                recipe=found.recipe,
                directory=group / folder(planes),
                execution=execution or Execution(),
                init=init if before is None else None,
                init_run=before,
                after=() if before is None else (before,),
                code=code,
            )
        )
    return specs


def plan_specs(
    data: Prepared,
    plan: TrainingPlan,
    wanted: Sequence[tuple[int, ...]] | None,
    settings: tuple[str, ...],
    runs: Path,
    *,
    name: str | None,
    init: Path | None,
    init_shard: int | None,
    execution: Execution,
) -> list[RunSpec]:
    """The runs of a plan, or the wanted ones of them, in its order; each starts from the weights
    that the plan says. `settings` come on top of the plan's.
    """
    if init_shard is not None:
        raise ConfigError("--init-shard: the plan says what each run starts from")
    splits, specs = data.manifest.preparation.splits, []
    for run in plan.runs:
        planes = parse_shards(run.shard, splits)
        after = None if run.after is None else int(run.after)
        if wanted is not None and planes[0] not in wanted:
            continue
        changes = (*plan.settings, f"epochs={run.epochs}", *settings)
        specs += make_specs(
            data, planes, plan.recipe, changes, runs, name=name or plan.name,
            init=init if after is None else None, init_shard=after, execution=execution,
        )  # fmt: skip
    if not specs:
        raise ConfigError(f"the plan has none of these shards: {', '.join(map(str, wanted or ()))}")
    return specs


def with_seeds(
    settings: tuple[str, ...], name: str | None, first: int, seeds: int
) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Settings and --name of so many seeds, from the recipe's own `first` on."""
    for seed in range(first, first + seeds):
        own = f"seed={seed}"
        yield (*settings, own), None if name is None else f"{name}+{own}"


def run_specs(
    specs: list[RunSpec], data: Prepared, wanted: Wanted, progress_bar: ProgressBar
) -> Iterator[str]:
    """Carry out one run here, or several in processes of their own; a line of each."""
    if wanted.needs_queue(len(specs), os.environ):
        yield from _queued(specs, data, wanted)
        return
    _slots_here(wanted, 1)  # refuses options that make no sense on this machine
    if line := carry_out(specs[0], progress_bar):
        yield line


def spread_of(specs: list[RunSpec], data: Prepared) -> str:
    """What one shard reached with several seeds, in a line."""
    found = [RunDir(spec.directory).finished(spec.recipe, data.manifest) for spec in specs]
    return f"shard {specs[0].shard}, {spread([result for result in found if result])}"


def _queued(specs: list[RunSpec], data: Prepared, wanted: Wanted) -> Iterator[str]:
    """As many at a time as there are slots; finished ones are only reported."""
    directories = {spec.directory for spec in specs}
    times = Counter(spec.shard for spec in specs)
    entries = []
    for spec in specs:
        run = RunDir(spec.directory)
        if result := run.finished(spec.recipe, data.manifest):
            yield f"{run.path}: already finished, {figures(result)}"
            continue
        run.check_same(spec.recipe, data.manifest)  # before its spec.json is replaced
        if spec.init_run not in directories:
            first_weights(spec, data)  # refused now, rather than by every job
        several = f" of {run.path.parent.name}" * (times[spec.shard] > 1)
        entries.append(Entry(_job(spec, spec.shard + several)))
    slots = _slots_here(wanted, max(1, len(entries)))
    shared = any(slot.devices and slot.sharing > 1 for slot in slots)
    with ExitStack() as stack:
        if shared and entries:
            os.environ.update(stack.enter_context(shared_gpus()))  # the jobs inherit it
        if entries:
            Queue(entries, slots, watch(entries)).run()


def _job(spec: RunSpec, shard: str) -> Job:
    worker = (sys.executable, "-P", str(PROGRAM), "worker", str(spec.directory / NAME))
    return Job(
        shard=shard,
        directory=spec.directory,
        command=worker,
        after=spec.after,
        prepare=spec.save,
    )


def _slots_here(wanted: Wanted, jobs: int) -> list[Slot]:
    """Where `jobs` of them run on this machine; ConfigError for what it does not have."""
    return make_slots(wanted, visible_devices(), usable_cores(), jobs)
