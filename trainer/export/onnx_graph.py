"""Puts the classifier together as one ONNX graph: the split, the networks, the pooling.

Each kind of network is translated once, which takes a third of a second a convolution; others of
the same kind are that graph with their own weights. Nothing is folded before: weights stay what
they are called in torch.
"""

import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from trainer.export.module import ImageClassifier

OPSET, IR_VERSION = 18, 8  # what ONNX Runtime 1.14 and later ones read
_TRACED = 2  # images: a batch of 1 would be fixed


def compose(
    module: ImageClassifier, images: Tensor, advance: Callable[[int, str], None]
) -> tuple[ir.Model, ir.Model]:
    """The model, and its part that makes planes of images, by itself. images: at least two."""
    images = images[:_TRACED]
    with torch.no_grad():
        planes = module.front(images)
        logits = [n(v) for n, v in zip(module.networks, planes, strict=True)]
    names = [f"planes_{k}" for k in range(len(planes))]
    front = translated(traced(module.front, (images,)), ["images"], names)
    graph = front.graph.clone()
    values = list(graph.outputs)
    graph.outputs.clear()
    kinds: dict[str, ir.Graph] = {}
    answers = []
    for k, (network, own) in enumerate(zip(module.networks, values, strict=True)):
        program = traced(network, (planes[k],))
        kind = _kind(program)
        if kind not in kinds:
            kinds[kind] = translated(program, ["planes"], ["logits"]).graph
        part = kinds[kind].clone()
        _give_weights(part, program)
        answers += _append(graph, part, f"network_{k}.", [own])
        advance(1, "")
    names = [f"logits_{k}" for k in range(len(logits))]
    back = translated(traced(module.back, tuple(logits)), names, ["probabilities"]).graph
    (probabilities,) = _append(graph, back, "fusion.", answers)
    probabilities.name = "probabilities"
    graph.outputs.append(probabilities)
    _tidy(graph)
    _tidy(front.graph)
    return (
        ir.Model(graph, ir_version=IR_VERSION, producer_name="spectral"),
        ir.Model(front.graph, ir_version=IR_VERSION),
    )


def weight_bytes(model: ir.Model) -> int:
    """Of all tensors in the graph."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def traced(module: nn.Module, examples: tuple[Tensor, ...]) -> Any:
    """By torch.export, for batches of any size."""
    shapes = [{0: torch.export.Dim.DYNAMIC} for _ in examples]
    variadic = len(examples) > 1
    return torch.export.export(
        module.eval(), examples, dynamic_shapes=(tuple(shapes),) if variadic else tuple(shapes),
        strict=False,
    )  # fmt: skip


def translated(program: Any, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """By torch's exporter, which says much that is of no use here."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found: Any = torch.onnx.export(
                program, (), dynamo=True, opset_version=OPSET, optimize=False, verbose=False,
                input_names=list(inputs), output_names=list(outputs),
            )  # fmt: skip
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    model: ir.Model = found.model
    return model


def _kind(program: Any) -> str:
    """Equal for networks that differ in the values of their weights alone."""
    found = hashlib.sha256(program.graph_module.code.encode())
    for name, value in sorted(program.state_dict.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
    for name, value in sorted(program.constants.items()):  # not weights, so part of the kind
        found.update(f"{name} {value.dtype} {value.tolist()}\n".encode())
    return found.hexdigest()


def _give_weights(graph: ir.Graph, program: Any) -> None:
    """Those of this network in place of those of the one that was translated."""
    for name, value in graph.initializers.items():
        if name in program.state_dict:
            own = program.state_dict[name].detach().contiguous()
            value.const_value = ir.tensor(own.numpy(), name=name)


def _append(
    graph: ir.Graph, part: ir.Graph, prefix: str, inputs: Sequence[ir.Value]
) -> list[ir.Value]:
    """All of `part`, which is used up, with these inputs; its outputs."""
    outputs = list(part.outputs)
    part.outputs.clear()
    for own, given in zip(part.inputs, inputs, strict=True):
        own.replace_all_uses_with(given)
    for name in list(part.initializers):
        value = part.initializers.pop(name)
        value.name = prefix + name
        assert value.const_value is not None
        value.const_value.name = value.name
        graph.register_initializer(value)
    nodes = list(part)
    part.remove(nodes)
    for node in nodes:
        node.name = prefix + (node.name or "")
        for output in node.outputs:
            output.name = prefix + (output.name or "")
    graph.extend(nodes)
    return outputs


def _tidy(graph: ir.Graph) -> None:
    """One name for the batch; shapes within, and where in which file of this machine a node comes
    from, are left out.
    """
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            if output not in graph.outputs:
                output.shape = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(["batch", *(value.shape or ())[1:]])
    graph.metadata_props.clear()
    graph.name = "classifier"
