"""A prepared data set and shard numbers in; trained networks out, one line said of each."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.catalogue import catalogue
from pipeline.errors import ConfigError
from trainer.recipe import resolve
from trainer.rundir import RunDir, group_directory
from trainer.selection import Prepared
from trainer.train import ProgressBar, Trainer, pick_device

log = logging.getLogger(__name__)
SMALL_PLANE = 64  # px; what an own data set's default recipe depends on


def default_recipe(data: Prepared) -> str:
    """The data set's recipe from datasets.toml; for others by the size of the plane."""
    prep = data.manifest.preparation
    if spec := catalogue().get(prep.dataset):
        return spec.recipe
    return "cifar-resnet20" if prep.input_shape[1] <= SMALL_PLANE else "resnet18"


def train_shards(
    data: Prepared,
    shards: list[int],
    recipe_name: str | None,
    settings: tuple[str, ...],
    name: str | None,
    runs: Path,
    progress_bar: ProgressBar,
) -> Iterator[str]:
    """Train one shard after the other; a finished one is only reported."""
    recipe, label = resolve(recipe_name or default_recipe(data), settings)
    if name is not None and (not name or "/" in name or name.startswith(".")):
        raise ConfigError(f"--name {name}: it names a folder, so no '/' or leading '.'")
    group = group_directory(runs, data, name or label)
    for k in shards:
        run = RunDir.of(group, k)
        if result := run.finished(recipe, data.manifest):
            yield f"{run.path}: already finished, {_figures(result)}"
            continue
        trainer = Trainer(data, k, recipe, run, pick_device())
        yield f"{run.path}: {_figures(trainer.train(progress_bar))}"


def _figures(result: dict[str, Any]) -> str:
    found = [
        f"{split} {result[split]['top1']:.2%}" for split in ("calib", "val") if split in result
    ]
    return ", ".join([f"{result['epochs']} epochs in {result['train_seconds']:.0f} s", *found])
