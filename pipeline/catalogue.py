"""datasets.toml in, what is known of a data set out (`DatasetSpec`)."""

import tomllib
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One entry of datasets.toml. Sizes in px; `images` counts images per split."""

    name: str
    title: str
    classes: int
    images: dict[str, int]
    channels: int
    size: int
    recipe: str
    layouts: tuple[str, ...]
    get: str
    terms: str
    sizes: dict[str, int] = field(default_factory=dict)

    def size_for(self, splits: int) -> int:
        """Side in px to which images are resized before a split into `splits` planes."""
        return self.sizes.get(str(splits), self.size)


def _spec(name: str, entry: dict[str, Any]) -> DatasetSpec:
    known = {f.name for f in fields(DatasetSpec)} - {"name"}
    if unknown := sorted(set(entry) - known):
        raise ConfigError(
            f"datasets.toml: [{name}] has unknown keys {', '.join(unknown)}; "
            f"valid are {', '.join(sorted(known))}"
        )
    return DatasetSpec(name=name, **{**entry, "layouts": tuple(entry["layouts"])})


@cache
def catalogue() -> dict[str, DatasetSpec]:
    """All known data sets by name."""
    text = (resources.files("pipeline") / "datasets.toml").read_text(encoding="utf-8")
    return {name: _spec(name, entry) for name, entry in tomllib.loads(text).items()}
