"""The exported classifier in files of this tool's own: what they hold, and how they are read back.

`config.json`: networks with their recipes and digests, weights, temperature, figures.
`manifest.json`: the preparation, classes and statistics. `model.safetensors`: all tensors, those of
one network as `shard_07.NAME`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.errors import ConfigError, DamagedError
from pipeline.format import manifest
from pipeline.format.manifest import Manifest
from trainer.export.tensors import tensors_of
from trainer.fusion.pooling import Pooling
from trainer.recipes.recipe import Recipe, build
from trainer.record.rundir import folder
from trainer.record.weights import digest_of
from trainer.run.evaluate import Predictor
from trainer.run.network import build_network, make_predictor, mirrored

CONFIG, TENSORS = "config.json", "model.safetensors"
FORMAT, SCHEMA = "spectral classifier", 1


class Artefact(NamedTuple):
    """What a FusedClassifier is made of."""

    data: Manifest
    predictors: list[Predictor]
    planes: list[tuple[int, ...]]
    pooling: Pooling


def read(directory: Path, method: str | None, device: torch.device) -> Artefact:
    """The classifier in a folder, checked against its digests. ConfigError, DamagedError."""
    path = directory / CONFIG
    content = _config(path)
    if method not in (None, content["method"]):
        raise ConfigError(
            f"{directory} holds method {content['method']} alone: export the runs with --method "
            f"{method}"
        )
    data = manifest.load(directory)
    try:
        if data.digest != content["manifest"]:
            raise ValueError(f"{manifest.NAME} is another one")
        pooling, flip = Pooling.read(content["pooling"]), content["flip"]
        rows = [
            (tuple(row["planes"]), build(Recipe, row["recipe"]), row["digest"])
            for row in content["networks"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    predictors = []
    for planes, recipe, digest in rows:
        tensors = tensors_of(directory / TENSORS, folder(planes))
        if digest_of(tensors) != digest:
            shard = "+".join(map(str, planes))
            raise _damaged(directory / TENSORS, f"the values of shard {shard} are others")
        network = build_network(recipe, data, len(planes))
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise ConfigError(
                f"{directory / TENSORS} does not fit the network {recipe.model} of this version: "
                f"{error}"
            ) from error
        recipe = mirrored(recipe) if flip else recipe
        predictors.append(make_predictor(network.to(device), recipe, data, planes, device))
    return Artefact(data, predictors, [planes for planes, *_ in rows], pooling)


def config_text(content: dict[str, Any]) -> str:
    """The file, with a digest of all that is in it."""
    whole = {"format": FORMAT, "schema": SCHEMA, **content}
    return json.dumps(whole | {"digest": _digest(whole)}, indent=1, ensure_ascii=False) + "\n"


def _config(path: Path) -> dict[str, Any]:
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise _damaged(path, "not the JSON that was written") from error
    digest = content.pop("digest", None)
    if content.get("format") != FORMAT:
        raise ConfigError(f"{path} is not of `spectral export`: it says no format {FORMAT!r}")
    if content.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path} has schema {content.get('schema')!r}, this version reads {SCHEMA}: export the "
            "runs again"
        )
    if digest != _digest(content):
        raise _damaged(path, "its digest does not match its content")
    return content


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"{path} is damaged: {why}; copy it again, or export the runs again")
