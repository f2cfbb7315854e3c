"""What `spectral export` does: one classifier in, a folder that is whole or absent out."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from pipeline import __version__
from pipeline.errors import ConfigError
from pipeline.format import manifest
from pipeline.progress import ProgressBar
from trainer.export import artefact
from trainer.export.card import card
from trainer.export.folder import check_free, whole_folder
from trainer.export.onnx_file import write_onnx
from trainer.export.preprocess import NAME as PREPROCESS
from trainer.export.preprocess import preprocessing
from trainer.export.pt2_file import write_pt2
from trainer.export.save import save
from trainer.export.split import image_side
from trainer.fusion.classifier import FusedClassifier
from trainer.fusion.selected import selected

CLASSIFIER = "classifier.json"
_WRITERS = {"onnx": write_onnx, "pt2": write_pt2}


def export_weights(
    path: Path, to: Path, method: str | None, licence: str | None, progress_bar: ProgressBar
) -> list[str]:
    """config.json, manifest.json, model.safetensors; with a licence, a model card too. The lines
    to print.
    """
    check_free(to)
    if (path / artefact.CONFIG).exists():
        raise ConfigError(f"{path} is exported already: copy it, or name the runs that it is of")
    chosen = selected(path, method)
    with whole_folder(to) as partial:
        config = save(chosen, partial, progress_bar)
        if licence is not None:
            text = card(config, manifest.load(partial), licence)
            (partial / "README.md").write_text(text, encoding="utf-8")
    return _said(to)


def export_program(
    path: Path, to: Path, form: str, method: str | None, progress_bar: ProgressBar
) -> list[str]:
    """A program for `form`, onnx or pt2, with preprocess.py and classifier.json beside it. The
    lines to print.
    """
    check_free(to)
    classifier = FusedClassifier.load(path, method=method, device=torch.device("cpu"))
    facts = _facts(classifier)
    with whole_folder(to) as partial:
        found = _WRITERS[form](classifier, facts, partial, progress_bar)
        digests = {file.name: _sha256(file) for file in sorted(partial.iterdir())}
        prep = classifier.data.preparation
        (partial / PREPROCESS).write_text(preprocessing(prep), encoding="utf-8")
        content = facts | found | {"sha256": digests}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (partial / CLASSIFIER).write_text(text, encoding="utf-8")
    said = f"compared with {found['compared_with']}: probabilities differ by at most "
    return [*_said(to), f"{said}{found['largest_difference']:.1g}"]


def _facts(classifier: FusedClassifier) -> dict[str, Any]:
    """What a program that uses it may want to know."""
    data, side = classifier.data, image_side(classifier.data.preparation)
    prep = data.preparation
    return {
        "spectral": __version__,
        "input": {"name": "images", "type": "uint8", "shape": ["B", side, side, prep.channels]},
        "output": {"name": "probabilities", "shape": ["B", len(data.classes)]},
        "dataset": prep.dataset,
        "folder": prep.folder(),
        "resize": prep.resize,
        "planes": [list(planes) for planes in classifier.planes],
        "pooling": classifier.pooling.row(),
        "classes": data.classes,
        "class_names": data.class_names,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said(to: Path) -> list[str]:
    files = sorted(to.iterdir())
    return [f"wrote {to}:", *(f"  {file.name}  {file.stat().st_size:,} bytes" for file in files)]
