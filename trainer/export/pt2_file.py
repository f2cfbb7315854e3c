"""Writes the classifier as a program of torch.export, and asks that before it is called written."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pipeline.progress import ProgressBar
from trainer.export.compare import check_answers, check_planes, example_images
from trainer.export.module import ImageClassifier
from trainer.fusion.classifier import FusedClassifier

MODEL = "model.pt2"
_TRACED = 2  # images: a batch of 1 would be fixed


def write_pt2(
    classifier: FusedClassifier, facts: dict[str, Any], directory: Path, progress_bar: ProgressBar
) -> dict[str, Any]:
    """model.pt2; what to know of it. MismatchError if it answers otherwise than the classifier."""
    prep, path = classifier.data.preparation, directory / MODEL
    with progress_bar("tracing", len(classifier.planes), "networks") as advance:
        traced = ImageClassifier(classifier, advance)
        program = torch.export.export(
            traced,
            (example_images(prep, _TRACED),),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            strict=False,
        )
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names files of this machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are part of a tensor: they are on the CPU
        torch.export.save(program, path, extra_files={"spectral.json": json.dumps(facts)})
    module = ImageClassifier(classifier)
    check_planes(module.front, prep, lambda images: list(module.front(images)))
    read: torch.nn.Module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        found: Tensor = read(images)
        return found

    apart = check_answers(module, prep, run)
    return {"compared_with": f"torch {torch.__version__}", "largest_difference": apart}
