"""Writes the classifier of finished runs as files that `FusedClassifier.load` takes back."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.format import manifest
from pipeline.format.manifest import Manifest
from pipeline.progress import ProgressBar
from trainer.export import artefact
from trainer.export.tensors import join
from trainer.fusion.selected import Selected
from trainer.record.rundir import folder
from trainer.record.weights import load_weights
from trainer.run.network import recipe_of


def save(chosen: Selected, directory: Path, progress_bar: ProgressBar) -> dict[str, Any]:
    """config.json, manifest.json and model.safetensors, in a folder that is there; the content of
    the first.
    """
    trained_on = manifest.load(chosen.members[0].run.path)
    portable(trained_on).save(directory)
    config = {
        "spectral": __version__,
        "dataset": trained_on.preparation.dataset,
        "folder": trained_on.preparation.folder(),
        "method": chosen.method,
        "pooling": chosen.pooling.row(),
        "flip": chosen.flip,
        "networks": [
            {
                "planes": list(member.planes),
                "digest": member.digest,
                "recipe": asdict(recipe_of(member.run)),
            }
            for member in chosen.members
        ],
        "split": chosen.split,
        "figures": chosen.figures,
        "trained_on": trained_on.digest,
        "manifest": manifest.load(directory).digest,
    }
    text = artefact.config_text(config)
    (directory / artefact.CONFIG).write_text(text, encoding="utf-8")
    files = {folder(member.planes): member.run.best for member in chosen.members}
    with progress_bar("joining networks", len(files), "networks") as advance:
        for path in files.values():
            load_weights(path)  # so that what is damaged is found here, not by who loads it
            advance(1, "")
        join(files, directory / artefact.TENSORS)
    return config


def portable(data: Manifest) -> Manifest:
    """Without what is of the machine that it was prepared on: the folder of the source."""
    return replace(data, source=Path(data.source).name)
