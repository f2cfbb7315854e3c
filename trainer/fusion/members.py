"""Which trained networks make a classifier."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.format import manifest
from pipeline.format.manifest import Manifest
from trainer.data.selection import Prepared
from trainer.record.rundir import RunDir, folder, shard_of
from trainer.record.weights import identity
from trainer.run.spec import NAME as SPEC
from trainer.run.spec import RunSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A finished run, the planes that its network sees, and the digest of its best weights."""

    run: RunDir
    planes: tuple[int, ...]
    digest: str

    @classmethod
    def of(cls, directory: Path) -> "Member":
        """The run in a directory, which its name says the planes of."""
        run = RunDir(directory)
        shard = shard_of(directory)
        if shard is None:
            raise ConfigError(f"{directory} is no run: its name says no planes")
        return cls(run, tuple(map(int, shard.split("+"))), identity(run.best))

    @property
    def shard(self) -> str:
        """How people name its planes: `7`, or `0+1`."""
        return "+".join(map(str, self.planes))

    def check_unchanged(self, digest: str) -> None:
        """Weights are of no use for a network that was trained after they were fitted."""
        if self.digest != digest:
            raise ConfigError(
                f"{self.run.path} was trained again after its weight was fitted: run `spectral "
                "ensemble` again"
            )


def select_group(base: Path, name: str | None) -> Path:
    """The runs of one recipe among those in `base`; `name`: its label, or how it starts."""
    found = sorted({path.parent for path in base.glob("*/shard_*") if path.is_dir()})
    if not found:
        raise ConfigError(f"no trained networks in {base}: run `spectral train` first")
    exact = [path for path in found if path.name == name]
    fitting = exact or [path for path in found if name is None or path.name.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    listed = "\n  ".join(f"--recipe {path.name}" for path in fitting or found)
    problem = "several recipes were trained" if fitting else f"no run of {name}"
    raise ConfigError(f"{problem} in {base}; choose one of\n  {listed}")


def finished_members(
    group: Path, data: Prepared, wanted: Sequence[tuple[int, ...]] | None = None
) -> list[Member]:
    """The finished runs of a group, or the wanted ones of them, by their planes; those that are
    not finished are said. A run on other data is an error.
    """
    named = {path: shard_of(path) for path in group.iterdir() if path.is_dir()}
    there = {tuple(map(int, text.split("+"))): path for path, text in named.items() if text}
    members = []
    for planes in sorted(there) if wanted is None else wanted:
        run = RunDir(there.get(planes, group / folder(planes)))
        shard = "+".join(map(str, planes))
        if not run.path.is_dir():
            log.warning("shard %s was not trained: left out", shard)
        elif run.result is None:
            log.warning("shard %s has not finished training: left out", shard)
        elif manifest.load(run.path).digest != data.manifest.digest:
            raise ConfigError(
                f"{run.path} was trained on other data than {data.directory}: train it again, "
                "or name the data that it was trained on with --data"
            )
        else:
            members.append(Member.of(run.path))
    if not members:
        raise ConfigError(f"no shard of {group} has finished training")
    return members


def missing_planes(members: Sequence[Member], data: Manifest) -> list[int]:
    """The planes that none of them sees."""
    seen = {k for member in members for k in member.planes}
    return sorted({*range(data.preparation.splits)} - seen)


def data_of(group: Path) -> Path | None:
    """The prepared directory that the runs of a group were trained on; None, with a word, where it
    has gone or was prepared again since.
    """
    for path in sorted(group.glob(f"shard_*/{SPEC}")):
        where = RunSpec.load(path).data
        if not (where / manifest.NAME).exists():
            log.warning("%s, which %s was trained on, is not there", where, group)
        elif manifest.load(where).digest != manifest.load(path.parent).digest:
            log.warning("%s was prepared again since %s was trained on it", where, group)
        else:
            return where
        return None
    raise ConfigError(f"{group} holds no runs: name the folder of the runs of one recipe")
