"""The options of the commands that train in; the runs that they mean out."""

from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from trainer.data.selection import Prepared, parse_shards, runs_root, select
from trainer.jobs.shards import make_specs, plan_specs, with_seeds
from trainer.recipes.plan import NAME as PLAN
from trainer.recipes.plan import read_plan
from trainer.run.execution import Execution, Interval
from trainer.run.spec import RunSpec


def runs_asked_for(
    *,
    shards: str | None,
    plan_file: Path | None,
    data: Path | None,
    recipe: str | None,
    model: str | None,
    settings: tuple[str, ...],
    name: str | None,
    runs: Path | None,
    init: Path | None,
    init_shard: int | None,
    save_every: str,
    feed: str,
    deterministic: bool,
    compile_network: bool,
    log_to: str | None,
    seeds: int,
    stage: Path | None,
    **wanted: Any,
) -> tuple[Prepared, list[RunSpec]]:
    """The prepared data and a specification of each run: all shards with the first seed, then all
    with the next. wanted: how to choose among prepared data sets.
    """
    prepared = select(data, **wanted)
    execution = Execution(
        feed=feed,
        save_every=Interval.parse(save_every),
        deterministic=deterministic,
        compile_network=compile_network,
        log_to=log_to,
        stage=None if stage is None else str(stage.absolute()),
    )
    splits = prepared.manifest.preparation.splits
    numbers = None if shards is None else parse_shards(shards, splits)
    planned = None if plan_file is None else read_plan(plan_file)
    if numbers is None and planned is None:
        raise ConfigError("name the shards to train: --shard all, or --plan FILE")
    if model is not None:
        settings = (f"model={model}", *settings)
    common: dict[str, Any] = {"init": init, "init_shard": init_shard, "execution": execution}
    root = runs_root(runs)

    def specs_of(changes: tuple[str, ...], folder: str | None) -> list[RunSpec]:
        if planned is not None:
            return plan_specs(prepared, planned, numbers, changes, root, name=folder, **common)
        assert numbers is not None
        return make_specs(prepared, numbers, recipe, changes, root, name=folder, **common)

    specs = specs_of(settings, name)
    if seeds > 1:
        each = with_seeds(settings, name, specs[0].recipe.seed, seeds)
        specs = [spec for changes, folder in each for spec in specs_of(changes, folder)]
    return prepared, specs


def keep_plan(specs: list[RunSpec], plan_file: Path | None) -> None:
    """A copy of the plan beside the runs that follow it, for reports."""
    if plan_file is not None:
        content = plan_file.read_bytes()
        for group in {spec.directory.parent for spec in specs}:
            group.mkdir(parents=True, exist_ok=True)
            (group / PLAN).write_bytes(content)
