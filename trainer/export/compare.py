"""Asks an exported file about images, and refuses it unless it answers as the classifier does."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.errors import SpectralError
from pipeline.planes.imaging import image_to_values
from pipeline.preparation import Preparation
from trainer.export.module import Front, ImageClassifier
from trainer.export.split import image_side

_BATCHES = [1, 4, 3]  # images; what is exported is traced with two
_APART = 1e-4  # of probabilities that other kernels compute, and their logarithms' hundredth


class MismatchError(SpectralError):
    """What was exported does not answer as the classifier does."""


def example_images(prep: Preparation, count: int) -> Tensor:
    """uint8 (B, H, W, C): areas and edges of many sizes and contrasts, the last one noise."""
    rng, side = np.random.default_rng(0), image_side(prep)
    images: list[NDArray[np.uint8]] = []
    for number in range(count - 1):
        few = max(2, side >> (1 + number % 4))
        coarse = rng.integers(0, 256, (few, few, 3), dtype=np.uint8)
        kind = Image.Resampling.NEAREST if number % 2 else Image.Resampling.BICUBIC
        image = Image.fromarray(coarse).resize((side, side), kind)
        pixels = np.asarray(image if prep.channels == 3 else image.convert("L"))
        images.append(pixels.reshape(side, side, prep.channels))
    images.append(rng.integers(0, 256, (side, side, prep.channels), dtype=np.uint8))
    return torch.from_numpy(np.stack(images))


def check_planes(front: Front, prep: Preparation, run: Callable[[Tensor], list[Tensor]]) -> None:
    """MismatchError unless `run` gives of images the very planes that `spectral prepare` stores."""
    images = example_images(prep, sum(_BATCHES))
    stored = torch.from_numpy(
        np.stack([image_to_values(one.numpy().tobytes(), prep, one.shape) for one in images])
    )
    for batch, values in zip(
        torch.split(images, _BATCHES), torch.split(stored, _BATCHES), strict=True
    ):
        for found, planes in zip(run(batch), front.planes, strict=True):
            expected = values[:, list(planes)].reshape(found.shape).float()
            if differ := int((found != expected).sum()):
                raise MismatchError(
                    f"nothing was written: {differ} of {found.numel()} values of planes {planes} "
                    "are not those of `spectral prepare`; please report this"
                )


@torch.inference_mode()
def check_answers(
    module: ImageClassifier, prep: Preparation, run: Callable[[Tensor], Tensor]
) -> float:
    """The largest difference of a probability; MismatchError if it is more than rounding."""
    worst = 0.0
    for batch in torch.split(example_images(prep, sum(_BATCHES)), _BATCHES):
        expected, found = module(batch), run(batch)
        if found.shape != expected.shape:
            raise MismatchError(
                f"nothing was written: {len(batch)} images have answers of shape "
                f"{tuple(found.shape)}; please report this"
            )
        apart = float((found - expected).abs().max())
        logs = (found.clamp(min=1e-9).log() - expected.clamp(min=1e-9).log()).abs().max()
        if not (apart <= _APART and float(logs) <= 100 * _APART):  # also of NaN
            raise MismatchError(
                f"nothing was written: a probability differs by {apart:.2g}, more than rounding "
                f"explains ({_APART:g}); another version of torch, onnxscript or onnxruntime may "
                "be right"
            )
        worst = max(worst, apart)
    return worst
