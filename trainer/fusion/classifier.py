"""The fused classifier: what a user takes home, in one object."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline.errors import BadImageError, SourceError
from pipeline.format import manifest
from pipeline.format.manifest import Manifest
from pipeline.limits import usable_cores
from pipeline.planes.imaging import image_to_values
from trainer.export import artefact
from trainer.fusion.panel import planes_of
from trainer.fusion.pooling import Pooling
from trainer.fusion.selected import selected
from trainer.process.device import pick_device
from trainer.run.evaluate import Predictor
from trainer.run.network import load_predictor

ImageLike = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class Guess:
    """A class that an image may be of. key: of the data set (`n01440764`); name: for people."""

    key: str
    name: str
    probability: float

    @property
    def label(self) -> str:
        """`n01440764 tench`: the key, and the name where the source had one."""
        return self.key if self.name == self.key else f"{self.key} {self.name}"


class FusedClassifier(nn.Module):
    """The networks of the shards, each with its normaliser, and how their answers are pooled.

    data: the preparation, classes and statistics that it was trained on. predictors: a network
    for each entry of planes, the numbers of the planes that it sees.
    """

    def __init__(
        self,
        data: Manifest,
        predictors: Sequence[Predictor],
        planes: Sequence[tuple[int, ...]],
        pooling: Pooling,
    ) -> None:
        super().__init__()
        self.data, self.planes, self.pooling = data, tuple(planes), pooling
        self.predictors = nn.ModuleList(predictors)
        self.eval()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        method: str | None = None,
        device: torch.device | None = None,
    ) -> "FusedClassifier":
        """The networks of weight above 0 of a group of runs that `spectral ensemble` has fused,
        with its weights, or those of another `method`; a single run; or a folder that `spectral
        export` has written. ConfigError, DamagedError.
        """
        directory, device = Path(path), device or pick_device()
        if (directory / artefact.CONFIG).exists():
            return cls(*artefact.read(directory, method, device))
        found = selected(directory, method)
        data = manifest.load(found.members[0].run.path)
        predictors = [
            load_predictor(member.run, data, member.planes, device, flip=found.flip)
            for member in found.members
        ]
        return cls(data, predictors, [member.planes for member in found.members], found.pooling)

    @property
    def device(self) -> torch.device:
        """Where its networks are."""
        return next(self.parameters()).device

    @property
    def seen(self) -> tuple[int, ...]:
        """The planes that any network sees."""
        return tuple(sorted({k for planes in self.planes for k in planes}))

    def forward(self, values: Tensor) -> Tensor:
        """Logits (B, classes) float32 of all planes of images, (B, p², C, h, w) int8 as
        `planes_of_image` and the shards give them; their softmax are the probabilities.
        """
        every = tuple(range(self.data.preparation.splits))
        return self.pooling(self.member_logits(values, every))

    def member_logits(self, values: Tensor, there: tuple[int, ...]) -> Tensor:
        """Logits (networks, B, classes) of (B, g, C, h, w), the planes `there` of images."""
        pairs = zip(self.predictors, self.planes, strict=True)
        return torch.stack([predictor(planes_of(values, own, there)) for predictor, own in pairs])

    def planes_of_image(self, image: ImageLike) -> Tensor:
        """(p², C, h, w) int8 of a file, a PIL image or pixels (H, W), (H, W, 1 or 3) uint8: the
        very same that `spectral prepare` would store. SourceError if it cannot be used.
        """
        return torch.from_numpy(_planes(image, self.data))

    @torch.inference_mode()
    def probabilities(self, values: Tensor) -> Tensor:
        """(B, classes) float32, on the CPU."""
        logits: Tensor = self(values.to(self.device))
        return logits.softmax(1).cpu()

    def classify(
        self, images: Sequence[ImageLike], *, top: int = 5, batch_size: int = 64
    ) -> list[list[Guess]]:
        """The most likely classes of each image, the first one first. SourceError for an image
        that cannot be used; `classify_each` goes on.
        """
        found = []
        for guesses in self.classify_each(images, top=top, batch_size=batch_size):
            if isinstance(guesses, SourceError):
                raise guesses
            found.append(guesses)
        return found

    def classify_each(
        self, images: Sequence[ImageLike], *, top: int = 5, batch_size: int = 64
    ) -> Iterator[list[Guess] | SourceError]:
        """The same, one after the other; of an image that cannot be used its error. Images are
        decoded by a thread for each core while the networks are at work.
        """
        parts = [images[at : at + batch_size] for at in range(0, len(images), batch_size)]
        with ThreadPoolExecutor(usable_cores()) as pool:
            ahead = [pool.submit(_try_planes, image, self.data) for image in (parts or [[]])[0]]
            for following in [*parts[1:], []]:
                now = ahead
                ahead = [pool.submit(_try_planes, image, self.data) for image in following]
                yield from self._batch([one.result() for one in now], top)

    def _batch(
        self, values: list[NDArray[np.int8] | SourceError], top: int
    ) -> Iterator[list[Guess] | SourceError]:
        good = [torch.from_numpy(one) for one in values if not isinstance(one, SourceError)]
        answers = iter(self.probabilities(torch.stack(good)) if good else torch.empty(0))
        for one in values:
            yield one if isinstance(one, SourceError) else self._guesses(next(answers), top)

    def _guesses(self, probabilities: Tensor, top: int) -> list[Guess]:
        """The first of equal ones first, as everywhere."""
        order = np.argsort(-probabilities.numpy(), kind="stable")[:top]
        names = self.data.class_names or self.data.classes
        return [Guess(self.data.classes[c], names[c], float(probabilities[c])) for c in order]


def _try_planes(image: ImageLike, data: Manifest) -> NDArray[np.int8] | SourceError:
    try:
        return _planes(image, data)
    except SourceError as error:
        return error


def _planes(image: ImageLike, data: Manifest) -> NDArray[np.int8]:
    """Of one image, by the chain of the offline stage."""
    prep = data.preparation
    try:
        if isinstance(image, str | os.PathLike):
            return image_to_values(Path(image).read_bytes(), prep)
        pixels = _pixels(image)
        return image_to_values(pixels.tobytes(), prep, pixels.shape)
    except OSError as error:
        raise SourceError(f"cannot read {image}: {error.strerror}") from error
    except BadImageError as error:
        what = image if isinstance(image, str | os.PathLike) else "the image"
        raise SourceError(f"{what}: {error}") from error


def _pixels(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 1 or 3) uint8."""
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8:
        raise SourceError(
            f"an array of shape {image.shape} and type {image.dtype} is no image: give pixels "
            "(H, W), (H, W, 1) or (H, W, 3) of uint8"
        )
    return np.ascontiguousarray(image)
