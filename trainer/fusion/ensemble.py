"""The trained sub-networks of one data set and recipe in; the fused classifier, measured, out."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamagedError
from pipeline.files import write_json
from pipeline.format import manifest
from trainer.data.loader import ShardLoader
from trainer.data.selection import Prepared, selection_split
from trainer.fusion import fuse
from trainer.record.rundir import RunDir
from trainer.record.weights import identity
from trainer.run.evaluate import metrics, predict_split
from trainer.run.network import load_predictor, recipe_of

log = logging.getLogger(__name__)
NAME = "ensemble.json"
METHODS = ("average", "geometric", "learned")
ProgressBar = Callable[[str, int, str], AbstractContextManager[Callable[[int, str], None]]]


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


def finished_runs(group: Path, data: Prepared) -> dict[int, RunDir]:
    """Shard → its finished run; missing and unfinished ones are said. A run on other data is
    an error.
    """
    runs: dict[int, RunDir] = {}
    for k in range(data.manifest.preparation.splits):
        run = RunDir.of(group, k)
        if not run.path.is_dir():
            log.warning("shard %d was not trained: left out", k)
        elif run.result is None:
            log.warning("shard %d has not finished training: left out", k)
        elif manifest.load(run.path).digest != data.manifest.digest:
            raise ConfigError(
                f"{run.path} was trained on other data than {data.directory}: train it again, "
                "or name the data that it was trained on with --data"
            )
        else:
            runs[k] = run
    if not runs:
        raise ConfigError(f"no shard of {group} has finished training")
    return runs


def ensemble(
    data: Prepared, group: Path, device: torch.device, progress_bar: ProgressBar
) -> dict[str, Any]:
    """Each network and each way to fuse them, in ensemble.json: weights are fitted on the split
    that the best epochs were chosen by, and measured on one that nothing was chosen by.
    """
    fitted = selection_split(data.manifest)
    measured_on = "test" if fitted == "val" else "val"
    splits = [split for split in (fitted, measured_on) if split and data.manifest.written(split)]
    if measured_on not in splits:
        log.warning("%s has no %s split: nothing is measured", data.directory, measured_on)
    runs = finished_runs(group, data)
    found = _all_logits(data, runs, splits, device, progress_bar)
    calib, val = found.get(str(fitted)), found.get(measured_on)
    weights = _all_weights(calib, len(runs))
    result: dict[str, Any] = {
        "data": data.described,
        "recipe": group.name,
        "fitted_on": fitted,
        "measured_on": measured_on if val is not None else None,
        "missing": sorted(set(range(data.manifest.preparation.splits)) - set(runs)),
        "shards": [
            _shard_row(k, i, calib, val) | {"digest": identity(run.best)}
            for i, (k, run) in enumerate(runs.items())
        ],
        "fused": {},
    }
    for method, (vector, note) in weights.items():
        measured = {} if val is None else _measure(fuse.fuse(val[0], vector), val[1])
        result["fused"][method] = {"weights": vector.tolist(), **note, **measured}
    write_json(group / NAME, result)
    return result


_Split = tuple[NDArray[np.float32], NDArray[np.int64]]


def _all_logits(
    data: Prepared,
    runs: dict[int, RunDir],
    splits: list[str],
    device: torch.device,
    progress_bar: ProgressBar,
) -> dict[str, _Split]:
    """(logits (networks, n, classes), labels (n,)) of each split."""
    logits: dict[str, list[NDArray[np.float32]]] = {split: [] for split in splits}
    labels: dict[str, NDArray[np.int64]] = {}
    with progress_bar("ensemble", len(runs), "networks") as advance:
        for k, run in runs.items():
            predictor = load_predictor(run, data.manifest, (k,), device)
            batch = recipe_of(run).batch_size
            for split in splits:
                loader = ShardLoader(data, split, k, batch_size=batch, device=device)
                found, truth = predict_split(predictor, loader)
                if not torch.isfinite(found).all():
                    raise DamagedError(f"{run.path}: its answers are not finite; train it again")
                logits[split].append(found.numpy())
                labels[split] = truth.numpy()
            advance(1, f"shard {k}")
    return {split: (np.stack(logits[split]), labels[split]) for split in splits}


def _all_weights(
    calib: _Split | None, networks: int
) -> dict[str, tuple[NDArray[np.float64], dict[str, float]]]:
    weights: dict[str, tuple[NDArray[np.float64], dict[str, float]]] = {
        "average": (fuse.average(networks), {})
    }
    if calib is None:
        log.warning("no split is left to fit weights on: only the average is fused")
        return weights
    geometric, q = fuse.geometric(*calib)
    weights["geometric"] = (geometric, {"q": q})
    learned = fuse.learned(*calib)
    if learned.any():
        weights["learned"] = (learned, {})
    else:  # no combination is better than equal odds for all classes
        log.warning(
            "learned weights are all 0, as no network knows anything of the split that they are "
            "fitted on: train longer; the average is used"
        )
    return weights


def _measure(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    return asdict(metrics(torch.from_numpy(logits), torch.from_numpy(labels)))


def _shard_row(k: int, i: int, calib: _Split | None, val: _Split | None) -> dict[str, Any]:
    row = {"shard": k, **({} if val is None else _measure(val[0][i], val[1]))}
    if calib is not None:
        row["fitted_top1"] = fuse.top1(calib[0][i], calib[1])
    return row
