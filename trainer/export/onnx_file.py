"""Writes the classifier for ONNX Runtime, and asks ONNX Runtime before it is called written."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.progress import ProgressBar
from trainer.export.compare import check_answers, check_planes, example_images
from trainer.export.module import ImageClassifier
from trainer.fusion.classifier import FusedClassifier

MODEL, WEIGHTS = "model.onnx", "weights.data"
LARGEST = 2**31 - 2**26  # bytes of weights in one file: protobuf ends at 2 GiB
_SMALL = 1024  # bytes of a tensor that stays in the model's own file


def write_onnx(
    classifier: FusedClassifier, facts: dict[str, Any], directory: Path, progress_bar: ProgressBar
) -> dict[str, Any]:
    """model.onnx, and weights.data beside it where one file cannot hold all; what to know of it.
    MismatchError if ONNX Runtime answers otherwise than the classifier.
    """
    try:
        import onnx_ir as ir
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it

        from trainer.export import onnx_graph
    except ImportError as error:
        raise ConfigError(
            f"--format onnx needs {error.name}, which is not installed: "
            "pip install 'spectral-shards[export]'"
        ) from error
    prep = classifier.data.preparation
    module = ImageClassifier(classifier)
    with progress_bar("translating", len(classifier.planes), "networks") as advance:
        model, front = onnx_graph.compose(module, example_images(prep, 2), advance)
    model.metadata_props["spectral"] = json.dumps(facts, ensure_ascii=False)
    split = onnx_graph.weight_bytes(model) > LARGEST
    path = directory / MODEL
    ir.save(model, path, external_data=WEIGHTS if split else None, size_threshold_bytes=_SMALL)

    def session(what: str | bytes) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(what, providers=["CPUExecutionProvider"])

    def run(of: onnxruntime.InferenceSession, images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(found) for found in of.run(None, {"images": images.numpy()})]

    planes = session(ir.to_proto(front).SerializeToString())
    check_planes(module.front, prep, lambda images: run(planes, images))
    written = session(str(path))
    apart = check_answers(module, prep, lambda images: run(written, images)[0])
    return {
        "opset": onnx_graph.OPSET,
        "ir_version": onnx_graph.IR_VERSION,
        "compared_with": f"onnxruntime {onnxruntime.__version__}",
        "largest_difference": apart,
    }
