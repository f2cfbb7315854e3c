"""manifest.json of a prepared directory: written last, read and checked first."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from pipeline import __version__
from pipeline.choices import SPLITS
from pipeline.errors import ConfigError, DamagedError, first_few, refuse_undecodable
from pipeline.files import fits, from_json, sync_directory, write_whole
from pipeline.format.samples import NAME as SAMPLES
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
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is damaged: not the JSON that was written") from error
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror}") from error
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
    kinds = get_type_hints(Manifest)
    known = {name: value for name, value in content.items() if name in kinds}
    if strange := [name for name, value in known.items() if not fits(value, kinds[name])]:
        raise DamagedError(f"{path} is no manifest: {first_few(strange)} cannot be what it says")
    try:
        content["preparation"] = Preparation(**content["preparation"])
        content["planes"] = [Plane(**plane) for plane in content["planes"]]
        found = Manifest(**content)
    except (TypeError, KeyError) as error:
        raise DamagedError(f"{path} lacks or adds fields: {error}") from error
    except ConfigError as error:
        raise DamagedError(f"{path} is no manifest: its preparation cannot be: {error}") from error
    if why := _contradiction(found):
        raise DamagedError(
            f"{path} contradicts itself: {why}. It is not what `spectral prepare` wrote: copy it "
            "again from where it is whole, or prepare again"
        )
    return found


def _contradiction(found: Manifest) -> str | None:
    """What parts of a manifest say against one another; its digest may be of an edited one."""
    prep, n, channels = found.preparation, found.preparation.splits, found.preparation.channels
    if found.counts.keys() != set(SPLITS):
        return f"counts are of {first_few(sorted(found.counts))}, not of {', '.join(SPLITS)}"
    for split, count in found.counts.items():
        if count.keys() != {"indexed", "written", "quarantined"} or min(count.values()) < 0:
            return f"counts of {split} are no indexed, written and quarantined images"
        if count["indexed"] != count["written"] + count["quarantined"]:
            return (
                f"counts of {split} do not add up: {count['indexed']} indexed, not "
                f"{count['written']} written + {count['quarantined']} quarantined"
            )
    names = len(found.classes if found.class_names is None else found.class_names)
    if not len(found.classes) == len(set(found.classes)) == names > 0:
        return f"{len(found.classes)} classes with {names} names, or two classes of one name"
    if [plane.k for plane in found.planes] != list(range(n)):
        return f"its planes are not 0 to {n - 1}, as of {n} splits"
    for plane in found.planes:
        if {len(plane.offset), len(plane.mean), len(plane.std)} != {channels} or plane.step <= 0:
            return f"plane {plane.k} is none of {channels} channels with a step"
    for what, rows, size in (("matrix", found.matrix, n), ("colour", found.colour, channels)):
        square = [len(row) for row in rows] == [size] * size
        if not square or not np.allclose(np.array(rows) @ np.array(rows).T, np.eye(size)):
            return f"{what} is no orthonormal matrix of {size} × {size}"
    used = [split for split in SPLITS if found.counts[split]["indexed"]]
    wanted = {SAMPLES, *(shard_name(split, k) for split in used for k in range(prep.splits))}
    if other := sorted(found.files.keys() ^ wanted):
        return f"by its counts and splits its files lack, or should not have, {first_few(other)}"
    whole = {"size": int, "digest": str}
    if odd := [name for name, entry in found.files.items() if not fits(entry, whole)]:
        return f"size and digest of {first_few(odd)}"
    if found.psnr_images > sum(count["written"] for count in found.counts.values()):
        return f"PSNR over {found.psnr_images} images, more than were written"
    return None


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
