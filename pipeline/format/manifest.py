"""manifest.json of a prepared directory: written last, read and checked first."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import ConfigError, DamagedError, refuse_undecodable
from pipeline.files import from_json, sync_directory, write_whole
from pipeline.preparation import Preparation

SCHEMA = 4
NAME = "manifest.json"


@dataclass(frozen=True)
class Plane:
    """Statistics of one plane. `offset` per rotated channel; `mean` and `std` per RGB (or
    grey) channel over train, in grey levels after the colour rotation is undone.
    """

    k: int
    step: float
    offset: list[float]
    clipped: float
    mean: list[float]
    std: list[float]
    bytes_per_sample: float
    psnr_db: float | None


@dataclass(frozen=True)
class Manifest:
    """All that a reader needs to know of a prepared directory (docs/format.md)."""

    preparation: Preparation
    tool_version: str
    versions: dict[str, str]
    source: str
    source_layout: str
    fingerprint: str
    origin: dict[str, list[int]]
    resize_filter: str
    classes: list[str]
    class_names: list[str] | None
    counts: dict[str, dict[str, int]]
    psnr_db: float | None
    psnr_images: int
    colour: list[list[float]]
    matrix: list[list[float]]
    planes: list[Plane]
    files: dict[str, dict[str, Any]]
    digest: str = ""

    def shard(self, split: str, k: int) -> str:
        """Path of a shard within the directory."""
        return shard_name(split, k)

    def written(self, split: str) -> int:
        """Samples in each shard of a split."""
        return self.counts[split]["written"]

    def check_shard(self, k: int) -> None:
        """ConfigError if there is no plane k."""
        if not 0 <= k < self.preparation.splits:
            raise ConfigError(
                f"shard {k} does not exist: {self.preparation.dataset} "
                f"{self.preparation.folder()} has shards 0 to {self.preparation.splits - 1}"
            )

    def save(self, directory: Path) -> None:
        """Write beside, sync, rename."""
        content = {"schema": SCHEMA, **asdict(self), "digest": ""}
        content["digest"] = _digest(content)
        write_whole(directory / NAME, _dump(content).encode())
        sync_directory(directory)


def shard_name(split: str, k: int) -> str:
    """Path of a shard within its directory."""
    return f"{split}/shard_{k:02d}.beton"


def load(directory: Path) -> Manifest:
    """The manifest of a finished directory; an error that says what is wrong otherwise."""
    refuse_undecodable(directory, ConfigError)
    path = directory / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if not directory.is_dir():
            raise ConfigError(f"{directory}: no such directory") from error
        raise ConfigError(
            f"{directory} has no {NAME}: name a prepared directory, OUT/<dataset>/sub…; if it is "
            "one, `spectral prepare` has not finished there"
        ) from error
    except NotADirectoryError as error:
        raise ConfigError(f"{directory} is a file: name its prepared directory") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"cannot read {path}: {error}") from error
    return _parse(path, text)


def _parse(path: Path, text: str) -> Manifest:
    try:
        content = from_json(text)
        schema = content.pop("schema")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: not the JSON that was written") from error
    if isinstance(schema, int) and schema < SCHEMA:
        raise ConfigError(
            f"{path} has schema {schema}, from before version {__version__}: prepare it again"
        )
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ConfigError(
            f"{path} has schema {schema!r}, this version ({__version__}) reads up to {SCHEMA}: "
            "update spectral"
        )
    recorded = content.get("digest")
    whole = {"schema": schema, **content}
    # the text too: digits beyond a float's precision would change nothing in the content
    if _dump(whole) != text or _digest({**whole, "digest": ""}) != recorded:
        raise DamagedError(f"{path} is damaged: its digest does not match its content")
    try:
        content["preparation"] = Preparation(**content["preparation"])
        content["planes"] = [Plane(**plane) for plane in content["planes"]]
        return Manifest(**content)
    except (TypeError, KeyError) as error:
        raise DamagedError(f"{path} lacks or adds fields: {error}") from error


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
