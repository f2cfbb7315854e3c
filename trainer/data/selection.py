"""What the user said of the data in; one prepared directory out, or the list of choices."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError, SpectralError
from pipeline.format import manifest
from pipeline.format.manifest import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A prepared directory and its manifest. staged: where copies of its files are, by name."""

    directory: Path
    manifest: Manifest
    staged: Mapping[str, Path] = field(default_factory=dict)

    def shard_path(self, split: str, k: int) -> Path:
        """The beton of plane `k`; ConfigError when it is not there."""
        name = self.manifest.shard(split, k)
        path = self.staged.get(name, self.directory / name)
        if not path.exists():
            raise ConfigError(f"{path} is missing, though the manifest lists it: prepare again")
        return path

    @property
    def described(self) -> str:
        """`cifar10/sub4`: data set and folder."""
        prep = self.manifest.preparation
        return f"{prep.dataset}/{self.directory.name}"


def selection_split(data: Manifest) -> str | None:
    """What the best weights are chosen by: calib; or val, where there is a test split to report."""
    if data.counts.get("calib", {}).get("written"):
        return "calib"
    return "val" if data.counts.get("test", {}).get("written") and data.written("val") else None


def data_root(data: Path | None) -> Path:
    """--data, else $SPECTRAL_DATA, else ./data."""
    return data or Path(os.environ.get("SPECTRAL_DATA", "data"))


def runs_root(runs: Path | None) -> Path:
    """--runs, else $SPECTRAL_RUNS, else ./runs."""
    return runs or Path(os.environ.get("SPECTRAL_RUNS", "runs"))


def select(data: Path | None, **wanted: object) -> Prepared:
    """The one prepared directory that fits. `data`: it, or a folder that holds some;
    `wanted`: fields of its preparation, None where the user said nothing.
    """
    root = data_root(data)
    if (root / manifest.NAME).exists():
        directories = [root]
    else:
        directories = sorted(path.parent for path in root.glob(f"*/*/{manifest.NAME}"))
    found = _loaded(directories)
    said = {key: value for key, value in wanted.items() if value is not None}
    fitting = [
        p for p in found if all(getattr(p.manifest.preparation, k) == v for k, v in said.items())
    ]
    if len(fitting) == 1:
        return fitting[0]
    raise _unclear(root, found, fitting, said)


def _loaded(directories: list[Path]) -> list[Prepared]:
    """Those with a manifest that can be read; the others are said, if there is any choice."""
    found = []
    for directory in directories:
        try:
            found.append(Prepared(directory, manifest.load(directory)))
        except SpectralError as error:
            if len(directories) == 1:
                raise
            log.warning("left out: %s", error)
    return found


def _unclear(
    root: Path, found: list[Prepared], fitting: list[Prepared], said: dict[str, object]
) -> SpectralError:
    if not found:
        return ConfigError(
            f"no prepared data set in {root}: run `spectral prepare` first, or name one by --data"
        )
    asked = "".join(f" --{key} {value}" for key, value in said.items())
    if not fitting:
        listed = "\n  ".join(str(p.directory) for p in found)
        return ConfigError(f"nothing prepared in {root} fits{asked}; there are\n  {listed}")
    listed = "\n  ".join(f"--data {p.directory}" for p in fitting)
    return ConfigError(f"{len(fitting)} prepared data sets fit{asked}; choose one:\n  {listed}")


def parse_shards(text: str, splits: int) -> list[tuple[int, ...]]:
    """Which planes each run sees, each run once: `7`, `0-3` and `3,5` are runs on one plane each,
    `all` one for every plane, `0+1+2` or `0-2+5` one run on several planes, stacked as channels.
    """
    if text == "all":
        return [(k,) for k in range(splits)]
    found: list[tuple[int, ...]] = []
    for part in text.split(","):
        terms = [_numbers(term, text, splits) for term in part.split("+")]
        if len(terms) == 1:
            found += [(k,) for k in terms[0]]
            continue
        planes = tuple(sorted(k for term in terms for k in term))
        if len(set(planes)) < len(planes):
            raise ConfigError(f"--shard {text}: {part.strip()} names a plane twice")
        found.append(planes)
    return list(dict.fromkeys(found))


def _numbers(term: str, text: str, splits: int) -> range:
    """`3` or `0-3`, a part of the option `text`."""
    first, dash, last = term.strip().partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ConfigError(f"--shard {text}: write 7, 0-3, 3,5, all, or 0+1+2 for planes together")
    numbers = range(int(first), int(last or first) + 1)
    if not numbers:
        raise ConfigError(f"--shard {text}: {term.strip()} counts down")
    if numbers[-1] >= splits:
        raise ConfigError(f"--shard {text}: this data set has shards 0 to {splits - 1}")
    return numbers
