"""What is known of each data set: the entries of datasets.toml."""

import tomllib
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One entry of datasets.toml. Sizes in px; `images` counts images per split.

    `min_images`: classes with fewer are left out; `val_per_class`: so many images of each class
    become val; both only where the source has no val of its own. `test_split`: counts per split
    when val becomes test and another val is taken from train.
    """

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
    min_images: int = 0
    val_per_class: int = 0
    test_split: dict[str, int] = field(default_factory=dict)

    def size_for(self, splits: int) -> int:
        """Side in px to which images are resized before a split into `splits` planes."""
        return self.sizes.get(str(splits), self.size)

    def lines(self) -> list[str]:
        """What there is to know, for people."""
        sizes = [f"{self.size} px"]
        sizes += [f"{px} px for --splits {splits}" for splits, px in self.sizes.items()]
        counts = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        colours = "grey" if self.channels == 1 else "RGB"
        return [
            f"{self.name}: {self.title}",
            f"  {self.classes:,} classes, {counts}; {', '.join(sizes)}; {colours}; "
            f"recipe {self.recipe}",
            f"  source: {', '.join(self.layouts)}; get it: {self.get}; terms: {self.terms}",
        ]


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
