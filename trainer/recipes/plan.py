"""Which planes are trained, for how many epochs, in which order, started from what: a file that
people read and change.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from pipeline.errors import ConfigError

NAME = "plan.toml"  # the copy beside the runs that followed it
_HEAD = """# A plan for `spectral train --plan`, made by `spectral plan`: change it as you like.
# Each of runs is one network: shard is what `train --shard` takes for one (7, 0+1+2); after is
# the shard whose best weights it starts from, which is trained before it.

"""


@dataclass(frozen=True)
class PlannedRun:
    """One network: shard `7` or `0+1+2`; after: the shard whose weights it starts from."""

    shard: str
    epochs: int
    after: str | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """name: folder of the runs. recipe and settings: as `train --recipe` and `--set` take them."""

    name: str
    recipe: str
    settings: tuple[str, ...]
    runs: tuple[PlannedRun, ...]

    def __post_init__(self) -> None:
        before: set[str] = set()
        for run in self.runs:
            if run.shard in before:
                raise ConfigError(f"plan: shard {run.shard} is planned twice")
            if run.epochs < 1:
                raise ConfigError(f"plan: epochs = {run.epochs} of shard {run.shard}: at least 1")
            if run.after is not None and run.after not in before:
                raise ConfigError(
                    f"plan: shard {run.shard} starts after {run.after}, which is not among the "
                    "runs above it"
                )
            before.add(run.shard)
        if not self.runs:
            raise ConfigError("plan: it has no runs")

    @property
    def epochs(self) -> int:
        """Of all runs together."""
        return sum(run.epochs for run in self.runs)

    def toml(self, remarks: str = "") -> str:
        """The file. remarks: lines about how it was made."""
        rows = [
            {"shard": run.shard, "epochs": run.epochs} | ({"after": run.after} if run.after else {})
            for run in self.runs
        ]
        content: dict[str, Any] = {
            "name": self.name,
            "recipe": self.recipe,
            "settings": list(self.settings),
            "runs": rows,
        }
        comment = "".join(f"# {line}\n" for line in remarks.splitlines())
        return _HEAD + comment + ("\n" if comment else "") + tomli_w.dumps(content)


def read_plan(path: Path) -> TrainingPlan:
    """ConfigError with what is wrong in the file."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        unknown = content.keys() - {"name", "recipe", "settings", "runs"}
        if unknown:
            raise ConfigError(f"{path}: unknown key {min(unknown)}")
        runs = tuple(_run(row) for row in content["runs"])
        settings = tuple(map(str, content.get("settings", [])))
        return TrainingPlan(str(content["name"]), str(content["recipe"]), settings, runs)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise ConfigError(f"{path} lacks {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no plan: {error}") from error


def _run(row: dict[str, Any]) -> PlannedRun:
    if not isinstance(row, dict):
        raise TypeError(f"{row!r} is no run")
    unknown = row.keys() - {"shard", "epochs", "after"}
    if unknown:
        raise ConfigError(f"plan: unknown key {min(unknown)} of a run")
    if type(row["epochs"]) is not int:
        raise TypeError(f"epochs = {row['epochs']!r} is no whole number")
    after = row.get("after")
    if after is not None and not str(after).isdecimal():
        raise TypeError(f"after = {after!r} is no single shard")
    return PlannedRun(str(row["shard"]), row["epochs"], None if after is None else str(after))
