"""Measures a classifier on prepared data, which need not be what it was trained on."""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ConfigError, first_few
from pipeline.format import manifest, samples
from pipeline.format.manifest import Manifest
from trainer.data.groups import open_split
from trainer.data.selection import Prepared
from trainer.fusion.classifier import FusedClassifier
from trainer.fusion.ensemble import ProgressBar
from trainer.fusion.figures import paired
from trainer.fusion.measure import Measured, measure
from trainer.fusion.outcomes import NAME as OUTCOMES
from trainer.fusion.outcomes import read_outcomes
from trainer.fusion.selected import default_method
from trainer.run.spec import NAME as SPEC
from trainer.run.spec import RunSpec

log = logging.getLogger(__name__)
_BATCH = 256
# What two preparations may differ in without an image becoming other planes
_OTHER = {"dataset", "calib", "limit", "all_classes", "test_split", "codec"}


def evaluate(
    classifier: FusedClassifier, data: Prepared, split: str, progress_bar: ProgressBar
) -> dict[str, Any]:
    """Figures of the classifier, and of each of its networks, on a split of prepared data."""
    found = outcomes_on(classifier, data, split, progress_bar)
    shards = ["+".join(map(str, planes)) for planes in classifier.planes]
    return {
        "data": data.described,
        "split": split,
        "classes": len(data.manifest.classes),
        "fused": found.fused["fused"].figures(),
        "networks": [
            {"shard": shard, **one.figures()}
            for shard, one in zip(shards, found.networks, strict=True)
        ],
    }


def outcomes_on(
    classifier: FusedClassifier, data: Prepared, split: str, progress_bar: ProgressBar
) -> Measured:
    """What becomes of each sample; answers are among the classes of the data."""
    _check_fits(classifier.data, data)
    if split not in data.manifest.counts or not data.manifest.written(split):
        there = [s for s in data.manifest.counts if data.manifest.written(s)]
        raise ConfigError(f"{data.directory} has no split {split}: it has {', '.join(there)}")
    columns = torch.tensor([classifier.data.classes.index(c) for c in data.manifest.classes])
    if len(columns) < len(classifier.data.classes):
        log.warning(
            "%s has %d of the classifier's %d classes: it answers among these",
            data.directory, len(columns), len(classifier.data.classes),
        )  # fmt: skip
    samples, fused = data.manifest.written(split), {"fused": classifier.pooling}
    with progress_bar(f"measuring on {split}", samples, "images") as advance:
        answers = _answers(classifier, data, split, columns.to(classifier.device))
        return measure(answers, len(classifier.planes), samples, fused, [], advance)


@torch.inference_mode()
def _answers(
    classifier: FusedClassifier, data: Prepared, split: str, columns: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    seen, device = classifier.seen, classifier.device
    loader = open_split(data, split, seen, batch_size=_BATCH, device=device)
    with closing(loader.batches(np.arange(loader.samples))) as batches:
        for values, labels in batches:
            planes = values if values.dim() == 5 else values[:, None]
            yield classifier.member_logits(planes, seen)[..., columns], labels


def _check_fits(trained: Manifest, data: Prepared) -> None:
    own, other = asdict(trained.preparation), asdict(data.manifest.preparation)
    differ = [key for key in own if key not in _OTHER and own[key] != other[key]]
    if differ:
        said = ", ".join(f"{key} {other[key]} in place of {own[key]}" for key in differ)
        raise ConfigError(
            f"{data.directory} was prepared otherwise than the classifier's data ({said}): "
            "prepare it in the same way"
        )
    known = set(trained.classes)
    if unknown := [name for name in data.manifest.classes if name not in known]:
        raise ConfigError(
            f"{data.directory} has classes that the classifier does not know: {first_few(unknown)}"
        )


def against(
    own: Path, result: dict[str, Any], other: Path, progress_bar: ProgressBar
) -> dict[str, Any]:
    """A fused group, of which `result` is known, compared with another group, or with a single
    run, image by image on the split that it was measured on. ConfigError if these are not the
    same images.
    """
    method, split = result["method"], result["measured_on"]
    if split is None:
        raise ConfigError(f"{own} was measured on nothing: it cannot be compared")
    first = read_outcomes(own, method)
    if (other / OUTCOMES).exists():
        second = read_outcomes(other, default_method(other))
    else:
        second = _of_run(other, split, progress_bar)
    if not np.array_equal(first[0], second[0]):
        same = len(np.intersect1d(first[0], second[0]))
        raise ConfigError(
            f"{own} and {other} were not measured on the same images ({len(first[0]):,} and "
            f"{len(second[0]):,}, {same:,} of them the same): they cannot be compared"
        )
    return {"other": str(other), "method": method, "split": split, **paired(first[1], second[1])}


def _of_run(
    directory: Path, split: str, progress_bar: ProgressBar
) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Ids in rising order, and whether a run's network was right on the data of its training."""
    classifier = FusedClassifier.load(directory)
    where = RunSpec.load(directory / SPEC).data
    data = Prepared(where, manifest.load(where))
    found = outcomes_on(classifier, data, split, progress_bar).fused["fused"]
    ids = samples.ids(where, split)
    order = np.argsort(ids)
    return ids[order], found.top1[order]
