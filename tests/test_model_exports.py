"""Networks: each family as torch.export's graph, which other formats start from."""

from typing import Any

import pytest
import torch

from trainer import models

EXPORTED: dict[str, tuple[int, dict[str, Any]]] = {  # px, model_args; of each family the smallest
    "air": (5, {"width": 4}),
    "alexnet": (29, {}),
    "cifar-resnet8": (8, {"width": 4}),
    "cnn": (8, {"width": 4}),
    "densenet-7-4": (8, {}),
    "densenet-bc-10-4": (8, {}),
    "densenet121": (8, {}),
    "fc2": (4, {"width": 8}),
    "imagenet-preact-resnet18": (8, {"width": 4}),
    "imagenet-pyramidnet-18-8": (8, {}),
    "imagenet-resnext50-2x4d": (8, {}),
    "preact-resnet8": (8, {"width": 4}),
    "pyramidnet-8-6": (7, {}),
    "resnet18": (8, {"width": 4}),
    "resnet8x1": (8, {}),
    "resnext11-2x4d": (8, {}),
    "se-preact-resnet8": (8, {"width": 4, "reduction": 2}),
    "shake-shake8-2x4d": (7, {}),
    "vgg15": (32, {"width": 4}),
    "vgg16": (32, {}),
    "wrn-10-1": (8, {"dropout": 0.3}),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_networks_can_be_exported(name: str) -> None:
    """No control flow that depends on data: the graph gives the same logits, of any batch."""
    size, args = EXPORTED[name]
    network = models.build(name, classes=3, channels=3, size=size, **args).eval()
    batch = torch.export.Dim("batch")
    inputs = torch.randn(2, 3, size, size)
    exported = torch.export.export(network, (inputs,), dynamic_shapes=({0: batch},)).module()
    for count in (1, 2, 5):
        inputs = torch.randn(count, 3, size, size)
        torch.testing.assert_close(exported(inputs), network(inputs))


def test_every_family_is_exported() -> None:
    """And each of its patterns by one name alone."""
    assert len(EXPORTED) == len(models._FAMILIES)
    assert {models._find(name)[0] for name in EXPORTED} == set(models._FAMILIES)
