"""Where a run lives and what lies there.

RUNS/<dataset>/<folder of the data>/<recipe>[+key=value…]/shard_07/ with recipe.toml, spec.json,
manifest.json (a copy of the data's), origin.json, versions.json, log.jsonl, last.pt and the
checkpoint before it, best.safetensors, status.json and, when it has finished, result.json.
"""

import fcntl
import json
import logging
import os
import platform
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline import __version__
from pipeline.errors import ConfigError, DamagedError
from pipeline.files import open_lock, write_json
from pipeline.format import manifest
from pipeline.format.beton import digest
from pipeline.format.manifest import Manifest
from trainer.data.selection import Prepared
from trainer.process.stop import ends_at_once
from trainer.recipes.recipe import Recipe, build
from trainer.record.status import heard_of, is_active, is_elsewhere
from trainer.record.status import read as read_status

_HEARD = "another machine trained it lately; waiting, up to 5 minutes, whether it still does"
log = logging.getLogger(__name__)


def group_directory(runs: Path, data: Prepared, label: str) -> Path:
    """The folder of all shards that one recipe trains on one prepared data set."""
    return runs / data.manifest.preparation.dataset / data.directory.name / label


def folder(planes: tuple[int, ...]) -> str:
    """The name of a run's directory among those of its recipe: `shard_07`, `shard_00+01`."""
    return "shard_" + "+".join(f"{k:02d}" for k in planes)


def shard_of(directory: Path) -> str | None:
    """What people call the planes of a run, by the name of its directory: `7`, `0+1`; None if it is
    not the name of one.
    """
    prefix, _, numbers = directory.name.partition("_")
    planes = numbers.split("+")
    if prefix != "shard" or not all(k.isascii() and k.isdecimal() for k in planes):
        return None
    return "+".join(str(int(k)) for k in planes)


@dataclass(frozen=True)
class RunDir:
    """One sub-network's directory."""

    path: Path

    @classmethod
    def of(cls, group: Path, k: int) -> "RunDir":
        """The run on plane `k` alone within a group."""
        return cls(group / folder((k,)))

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / "last.pt"

    @property
    def previous(self) -> Path:
        """The one before it."""
        return self.path / "previous.pt"

    @property
    def best(self) -> Path:
        """The weights with the best accuracy on calib."""
        return self.path / "best.safetensors"

    @property
    def new_best(self) -> Path:
        """Those that are to be the best once a checkpoint says so."""
        return self.path / "best.new.safetensors"

    @property
    def result(self) -> dict[str, Any] | None:
        """The figures of a finished run, else None."""
        return _read_json(self.path / "result.json")

    def finished(self, recipe: Recipe | None, data: Manifest) -> dict[str, Any] | None:
        """The result, if this recipe, or any, was trained to the end on this data; else None."""
        if result := self.result:
            self.check_same(recipe, data)
            if not {"epochs", "steps", "train_seconds"} <= result.keys():
                raise DamagedError(
                    f"{self.path / 'result.json'} is damaged: remove it and run the same again"
                )
            if not _is_weights(self.best):
                raise DamagedError(
                    f"{self.best} of a finished run is missing or damaged: remove {self.path} and "
                    "train this shard again"
                )
        return result

    def start(
        self,
        recipe: Recipe,
        data: Prepared,
        planes: tuple[int, ...],
        weights: Path | None,
        source: Path | None = None,
    ) -> None:
        """Write down what it is made from, once it is sure that it can be.

        `weights`: the file that the network starts from, if not from random ones; `source`: the
        user's own Python file that builds it, if there is one.
        """
        if not (self.path / manifest.NAME).exists():
            data.manifest.save(self.path)
        origin = _origin(data, planes, weights) | {"source": source and digest(source)}
        write_json(self.path / "origin.json", origin)
        (self.path / "recipe.toml").write_text(recipe.toml())
        write_json(self.path / "versions.json", versions())

    def check(
        self, recipe: Recipe, data: Prepared, planes: tuple[int, ...], weights: Path | None
    ) -> None:
        """Refuse it if what is there was made with another recipe, other data, another start; and
        files of the shard that are not what was prepared, where they are new here or changed.
        """
        self.check_same(recipe, data.manifest)
        path = self.path / "origin.json"
        recorded, found = _read_json(path) or {"files": {}}, _origin(data, planes, weights)
        if not isinstance(recorded.get("files"), dict):
            raise DamagedError(f"{path} is damaged: remove it, then the shard is checked anew")
        if recorded.get("weights", found["weights"]) != found["weights"]:
            raise ConfigError(
                f"{self.path} was started from other weights (--init, --init-shard): say the same "
                "again, or give this run another --name"
            )
        for name, stamp in found["files"].items():
            file = data.directory / name
            if recorded["files"].get(name) != stamp and (
                digest(file) != data.manifest.files[name]["digest"]
            ):
                raise DamagedError(
                    f"{file} is not what was prepared: copy it again from where it is whole, see "
                    "`spectral verify`"
                )

    def check_source(self, source: Path | None) -> None:
        """Say it if the user's own file that builds the network is not what it was."""
        recorded = (_read_json(self.path / "origin.json") or {}).get("source")
        if source is not None and recorded not in (None, digest(source)):
            log.warning("%s: %s has changed since the run was started", self.path, source)

    def check_same(self, recipe: Recipe | None, data: Manifest) -> None:
        """Refuse it if what is there was made with another recipe or other data."""
        recorded = self.path / "recipe.toml"
        if recipe is not None and recorded.exists() and not _same(recipe, recorded):
            raise ConfigError(
                f"{self.path} was started with another recipe (see recipe.toml there): "
                "give this one another --name"
            )
        copy = self.path / manifest.NAME
        if copy.exists() and manifest.load(self.path).digest != data.digest:
            raise ConfigError(
                f"{self.path} was trained on other data, or the data was prepared again since: "
                "give this run another --name, or remove the directory"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this run against a second one; a crash releases it."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / ".lock"
        with os.fdopen(open_lock(path)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._busy() from error
            except OSError as error:  # ENOSYS, ENOLCK, EOPNOTSUPP: a disk without locks
                log.warning(
                    "%s: this disk has no locks (%s), so that a second process could train the "
                    "same run at the same time", path, error.strerror,
                )  # fmt: skip
                if is_active(self.path):
                    raise self._busy() from error
            self._await_silence()
            yield

    def _await_silence(self) -> None:
        """Some file systems lock within one machine only: where another one was heard of lately,
        see whether it is heard of again.
        """
        if not is_elsewhere(self.path):
            return
        log.warning("%s: %s", self.path, _HEARD)
        beat = heard_of(self.path)
        with ends_at_once():
            while is_elsewhere(self.path):
                if heard_of(self.path) != beat:
                    raise self._busy()
                time.sleep(1)

    def _busy(self) -> ConfigError:
        state = read_status(self.path)
        where = f" ({state.host}, process {state.pid})" if state else ""
        return ConfigError(f"another process trains {self.path}{where}: wait for it")

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: from now on the run is finished."""
        write_json(self.path / "result.json", result)


def _is_weights(path: Path) -> bool:
    """Whether a file of weights is there, in its full length."""
    try:
        with safe_open(path, "np"):
            return True
    except (OSError, SafetensorError):
        return False


def _same(recipe: Recipe, path: Path) -> bool:
    """Whether a recipe's file says the same; what it does not say, since it is of an earlier
    version, is as it was then: the default.
    """
    try:
        return bool(build(Recipe, tomllib.loads(path.read_text(encoding="utf-8"))) == recipe)
    except (ConfigError, ValueError):
        return False


def _origin(data: Prepared, planes: tuple[int, ...], weights: Path | None) -> dict[str, Any]:
    """The shards' files with what changes when one is written, size and time in ns; and the
    digest of the first weights.
    """
    manifest = data.manifest
    splits = [split for split in manifest.counts if manifest.written(split)]
    names = [manifest.shard(split, k) for split in splits for k in planes]
    stamps = {name: (data.directory / name).stat() for name in names}
    return {
        "files": {name: [found.st_size, found.st_mtime_ns] for name, found in stamps.items()},
        "weights": None if weights is None else digest(weights),
    }


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DamagedError(
            f"{path} is damaged: {error}; remove it and run the same again"
        ) from error
    return content if isinstance(content, dict) else None


def versions() -> dict[str, str]:
    """What the figures of a run depend on, besides recipe and data."""
    import numba
    import numpy
    import torch

    found = {
        "spectral": __version__,
        "git": _git_state(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "timm": version("timm"),  # without importing it, which takes seconds
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _git_state() -> str:
    """Commit of the checkout that runs, with `+changes` if it has any; `none` if installed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+changes"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"
