"""Lists the recipes that come with the tool, and shows all values of one.

Nothing here loads torch: lists and tables answer at once.
"""

import json
from dataclasses import asdict
from textwrap import wrap
from typing import Any

from pipeline.errors import ConfigError
from trainer import console
from trainer.recipes.cookbook import about, flat, names, resolve
from trainer.recipes.recipe import Recipe

_FIGURES = ("lasts", "batch", "rate")
_COLUMNS = ("recipe", "network", "lasts", "batch", "optimiser", "rate", "schedule")
_WIDTH = 98  # characters of a line of what is said of one recipe
Row = tuple[str, ...]


def chosen(words: tuple[str, ...]) -> list[Row]:
    """A row of `_COLUMNS` for each recipe whose row holds all words."""
    rows = [(name, *_cells(resolve(name).recipe)) for name in names()]
    wanted = [word.lower() for word in words]
    found = [row for row in rows if all(word in " ".join(row).lower() for word in wanted)]
    if not found:
        raise ConfigError(f"no recipe with {' '.join(words)}; `spectral recipes` lists them all")
    return found


def table(rows: list[Row]) -> str:
    """For people."""
    return "\n".join(console.table(_COLUMNS, rows, _FIGURES))


def values(name: str) -> dict[str, dict[str, Any]]:
    """Every value of a recipe by its dotted key, with its origin: a recipe, or "default"."""
    found = resolve(name)
    return {
        key: {"value": value, "origin": found.origins.get(key, "default")}
        for key, value in flat(asdict(found.recipe))
    }


def shown(name: str) -> str:
    """The same for people, under what its file says of it."""
    rows = [(key, json.dumps(said["value"]), said["origin"]) for key, said in values(name).items()]
    key_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{key:{key_width}} = {value:{value_width}}  {origin}" for key, value, origin in rows]
    head = [f"# {line}" for line in wrap(about(name), _WIDTH)]
    return "\n".join([*head, "", *lines])


def _cells(recipe: Recipe) -> Row:
    lasts = f"{recipe.epochs} epochs" if recipe.epochs else f"{recipe.iterations:,} steps"
    optimizer = recipe.optimizer
    return (
        recipe.model,
        lasts,
        str(recipe.batch_size),
        optimizer.name,
        f"{optimizer.lr:g}",
        recipe.schedule.name,
    )
