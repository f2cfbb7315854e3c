"""One run, said in full: the command line makes it, a worker, a queue or torchrun carries it out.

It is written into the run's directory as spec.json, and what is read back is equal to it.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.files import write_json
from trainer.recipes.recipe import Recipe, build
from trainer.run.execution import Execution, Interval

NAME = "spec.json"
_PATHS = ("data", "directory", "init", "init_run", "code")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What to train, on what, from where, and how; nothing else decides what a worker does.

    data: the prepared directory. planes: the planes that the network sees, stacked as channels.
    init: a file of weights to start from; init_run: or the run whose best weights to start from.
    after: directories of runs that have to be finished before. code: the folder with the module of
    a network of the user's own. All paths are absolute.
    """

    data: Path
    planes: tuple[int, ...]
    recipe: Recipe
    directory: Path
    execution: Execution = field(default_factory=Execution)
    init: Path | None = None
    init_run: Path | None = None
    after: tuple[Path, ...] = ()
    code: Path | None = None

    def __post_init__(self) -> None:
        if not self.planes or sorted({*self.planes}) != [*self.planes] or self.planes[0] < 0:
            raise ConfigError(f"planes {self.planes}: name each once, in rising order, from 0")
        if self.init is not None and self.init_run is not None:
            raise ConfigError(
                f"a run starts from one set of weights, not from {self.init} and {self.init_run}"
            )
        paths = [getattr(self, name) for name in _PATHS]
        for path in (*filter(None, paths), *self.after):
            if not path.is_absolute():
                raise ConfigError(f"{path}: a run may start anywhere, so its paths are absolute")

    @property
    def shard(self) -> str:
        """How people name its planes: `7`, or `0+1+2`."""
        return "+".join(map(str, self.planes))

    def save(self) -> None:
        """Write it into the run's directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        content = asdict(self) | {name: _text(getattr(self, name)) for name in _PATHS}
        write_json(self.directory / NAME, content | {"after": [*map(str, self.after)]})

    @classmethod
    def load(cls, path: Path) -> "RunSpec":
        """Read one; ConfigError with what is wrong in it."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**_checked(values))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path} is no description of a run ({error}): `spectral train` writes a new one"
            ) from error


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a RunSpec, from what JSON can hold."""
    how = values["execution"]
    return values | {
        **{name: None if values[name] is None else Path(values[name]) for name in _PATHS},
        "planes": tuple(values["planes"]),
        "after": tuple(map(Path, values["after"])),
        "recipe": build(Recipe, values["recipe"]),
        "execution": Execution(**how | {"save_every": Interval(**how["save_every"])}),
    }
