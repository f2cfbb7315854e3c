"""Image files and the runs of one recipe in; classes with probabilities out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import BadImageError, ConfigError, SourceError
from pipeline.format import manifest
from pipeline.planes.imaging import image_to_values
from trainer.fusion import fuse
from trainer.fusion.ensemble import NAME
from trainer.process.device import pick_device
from trainer.record.rundir import RunDir
from trainer.record.weights import identity
from trainer.run.network import load_predictor


class Classifier:
    """The fused network of one group of runs; weights from `spectral ensemble`."""

    def __init__(self, group: Path, device: torch.device) -> None:
        rows, weights = _fused_weights(group)
        used = [row for row, w in zip(rows, weights, strict=True) if w > 0]
        runs = {row["shard"]: RunDir.of(group, row["shard"]) for row in used}
        for row in used:
            _check_same(runs[row["shard"]], row["digest"])
        self._weights = np.array([w for w in weights if w > 0])
        self.data = manifest.load(next(iter(runs.values())).path)
        self._device = device
        self._predictors = {k: load_predictor(r, self.data, (k,), device) for k, r in runs.items()}

    def classify(self, path: Path, top: int) -> list[tuple[str, float]]:
        """The most likely classes with probabilities. SourceError if `path` holds no image."""
        try:
            planes = image_to_values(path.read_bytes(), self.data.preparation)
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}") from error
        except BadImageError as error:
            raise SourceError(f"{path}: {error}") from error
        fused = fuse.fuse(self._logits(planes), self._weights)[0].astype(np.float64)
        probabilities = np.exp(fused - fused.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [(self._name(c), float(probabilities[c])) for c in best]

    def _name(self, label: int) -> str:
        """`n01440764 tench`: the class, and its name where the source had one."""
        key, names = self.data.classes[label], self.data.class_names
        return key if names is None or names[label] == key else f"{key} {names[label]}"

    @torch.inference_mode()
    def _logits(self, planes: NDArray[np.int8]) -> NDArray[np.float32]:
        """(networks, 1, classes)."""
        found = []
        for k, predictor in self._predictors.items():
            values = torch.from_numpy(planes[k : k + 1]).to(self._device)
            found.append(predictor(values).cpu().numpy())
        return np.stack(found)


def _check_same(run: RunDir, digest: str) -> None:
    """Weights are of no use for a network that was trained after they were fitted."""
    if identity(run.best) != digest:
        raise ConfigError(
            f"{run.path} was trained again after its weight in {NAME} was fitted: run `spectral "
            "ensemble` again"
        )


def _fused_weights(group: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """Rows of shards and their weights: learned where they could be fitted, else the average."""
    path = group / NAME
    if not path.exists():
        raise ConfigError(f"{group} has no {NAME}: run `spectral ensemble` first")
    try:
        content = json.loads(path.read_text())
        method = "learned" if "learned" in content["fused"] else "average"
        weights = content["fused"][method]["weights"]
        rows = [{"shard": row["shard"], "digest": row["digest"]} for row in content["shards"]]
        return rows, weights
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: run `spectral ensemble` again") from error


def predict_all(
    runs: Path, dataset: str | None, recipe: str | None, images: tuple[Path, ...], top: int
) -> list[dict[str, Any]]:
    """Predictions of each image by the one classifier in `runs` that fits, for printing; of a file
    that holds no image the `error` in place of its `classes`.
    """
    classifier = Classifier(_select(runs, dataset, recipe), pick_device())
    return [{"image": str(path), **_prediction(classifier, path, top)} for path in images]


def _prediction(classifier: Classifier, path: Path, top: int) -> dict[str, Any]:
    try:
        found = classifier.classify(path, top)
    except SourceError as error:
        return {"error": str(error)}
    return {"classes": [{"class": name, "probability": p} for name, p in found]}


def _select(runs: Path, dataset: str | None, recipe: str | None) -> Path:
    """The group of runs with an ensemble.json; `runs` itself may be one."""
    pattern = f"{dataset or '*'}/*/*/{NAME}"
    groups = [runs] if (runs / NAME).exists() else sorted(p.parent for p in runs.glob(pattern))
    fitting = [g for g in groups if recipe is None or g.name == recipe] or [
        g for g in groups if g.name.startswith(recipe or "")
    ]
    if len(fitting) == 1:
        return fitting[0]
    every = sorted(path.parent for path in runs.glob(f"*/*/*/{NAME}"))
    if not every:
        raise ConfigError(f"no fused classifier in {runs}: run `spectral ensemble` first")
    listed = "\n  ".join(f"--runs {group}" for group in fitting or every)
    raise ConfigError(
        f"{len(fitting) or 'none'} of {len(every)} fused classifiers in {runs} fit; choose one of"
        f"\n  {listed}"
    )
