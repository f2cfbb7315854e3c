"""What a cluster wants to be told: spectral.toml, and the options of `spectral submit` over it."""

import shlex
import sys
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from trainer.jobs.launch import PROGRAM

NAME = "spectral.toml"
# What the scripts rely on; the value that is to be given otherwise
_OURS = {
    **dict.fromkeys(("-a", "--array", "-J", "--job-name"), "the array is made here"),
    **dict.fromkeys(("--no-requeue", "-d", "--dependency"), "jobs go on after a stop"),
    **dict.fromkeys(("-W", "--wait", "--wrap"), "the jobs have a script"),
}
_LISTS = ("setup", "options")
_KINDS = {
    (True, False): (int, "a whole number"),
    (False, True): (tuple, "a list of texts"),
    (False, False): (str, "a text"),
}


@dataclass(frozen=True, kw_only=True)
class Site:
    """The table [slurm] of spectral.toml. time: of a job, as Slurm writes it. cpus: of a process.
    setup: lines of the script before the work. container: words before each command of ours, such
    as `apptainer exec --nv spectral.sif`. command: what `spectral` is called there.
    spread: seconds over which the tasks of an array start. options: of sbatch, further ones.
    """

    account: str = ""
    partition: str = ""
    time: str = ""
    cpus: int = 4
    mail: str = ""
    setup: tuple[str, ...] = ()
    container: str = ""
    command: str = ""
    spread: int = 10
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for entry in fields(self):
            value: Any = getattr(self, entry.name)
            kind, wanted = _KINDS[entry.name in ("cpus", "spread"), entry.name in _LISTS]
            texts = value if isinstance(value, tuple) else (str(value),)
            if type(value) is not kind or not all(isinstance(text, str) for text in texts):
                raise ConfigError(f"{NAME}, [slurm]: {entry.name} = {value!r} has to be {wanted}")
            if any("\n" in text for text in texts):
                raise ConfigError(f"{NAME}, [slurm]: {entry.name} has to be on one line")
        if self.cpus < 1 or self.spread < 0:
            raise ConfigError(f"{NAME}, [slurm]: cpus is at least 1, spread at least 0")
        for option in self.options:
            if why := _OURS.get(option.partition("=")[0]):
                raise ConfigError(f"{option} is not for you to say: {why}")

    @property
    def program(self) -> str:
        """Our tool, as the script of a job starts it: the very code that submits, unless there is
        a container.
        """
        own = "spectral" if self.container else shlex.join([sys.executable, "-P", str(PROGRAM)])
        return f"{self.container} {self.command or own}".strip()

    def over(self, options: tuple[str, ...], **said: Any) -> "Site":
        """With what was said on the command line; None where nothing was."""
        known = {key: value for key, value in said.items() if value is not None}
        return replace(self, **known, options=(*self.options, *options))


def load(path: Path | None) -> Site:
    """Of a file, or of ./spectral.toml if there is one."""
    try:
        content = tomllib.loads((path or Path(NAME)).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path is None:
            return Site()
        raise
    except ValueError as error:
        raise ConfigError(f"{path or NAME} is no TOML: {error}") from error
    table = content.pop("slurm", {})
    valid = [entry.name for entry in fields(Site)]
    if unknown := [*content, *(key for key in table if key not in valid)]:
        raise ConfigError(
            f"{path or NAME}: {', '.join(unknown)} is not known; it holds a table [slurm] with "
            f"{', '.join(valid)}"
        )
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    return Site(**values)
