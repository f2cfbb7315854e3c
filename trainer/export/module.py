"""The whole classifier as one torch module: an image in, probabilities out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainer.export.split import Split
from trainer.fusion.classifier import FusedClassifier
from trainer.fusion.panel import planes_of
from trainer.fusion.pooling import Pooling


class Front(nn.Module):
    """uint8 images (B, H, W, C) → the planes that each network sees, as it takes them."""

    def __init__(self, split: Split, planes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.split, self.planes = split, tuple(planes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, h, w) for one plane, (B, g, C, h, w) for several."""
        every = tuple(range(self.split.splits))
        values = self.split(images)
        return tuple(planes_of(values, own, every) for own in self.planes)


class Back(nn.Module):
    """Logits of the networks, (B, classes) each → probabilities (B, classes)."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, *logits: Tensor) -> Tensor:
        """As `FusedClassifier.probabilities`."""
        return self.pooling(torch.stack(logits)).softmax(1)


class ImageClassifier(nn.Module):
    """A FusedClassifier with the split before it, in float32. traced: is called after each
    network, for progress while this is traced.
    """

    def __init__(
        self, classifier: FusedClassifier, traced: Callable[[int, str], None] | None = None
    ) -> None:
        super().__init__()
        self.front = Front(Split(classifier.data.preparation), classifier.planes)
        self.networks = classifier.predictors
        for predictor in classifier.predictors:
            predictor.dtype = None  # type: ignore[assignment]  # torch says modules hold tensors
        self.back = Back(classifier.pooling)
        self._traced = traced or (lambda count, note: None)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, C), already resized → (B, classes) float32."""
        logits = []
        for network, values in zip(self.networks, self.front(images), strict=True):
            logits.append(network(values))
            self._traced(1, "")
        probabilities: Tensor = self.back(*logits)
        return probabilities
