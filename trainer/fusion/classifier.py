"""The fused classifier: what a user takes home, in one object."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline.errors import BadImageError, ConfigError, DamagedError, SourceError
from pipeline.format import manifest
from pipeline.format.manifest import Manifest
from pipeline.limits import usable_cores
from pipeline.planes.imaging import image_to_values
from trainer.fusion.ensemble import NAME
from trainer.fusion.members import Member
from trainer.fusion.panel import planes_of
from trainer.fusion.pooling import Pooling
from trainer.process.device import pick_device
from trainer.record.rundir import folder
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
        with its weights, or those of another `method`; or a single run. ConfigError, DamagedError.
        """
        directory, device = Path(path), device or pick_device()
        if (directory / NAME).exists():
            return cls._of_group(directory, method, device)
        if (directory / "result.json").exists():
            member = Member.of(directory)
            return cls._of_members([member], Pooling((1.0,)), device)
        raise ConfigError(
            f"{directory} is no classifier: name a finished run, or a group of runs after "
            "`spectral ensemble`"
        )

    @classmethod
    def _of_group(cls, group: Path, method: str | None, device: torch.device) -> "FusedClassifier":
        pooling, rows = read_ensemble(group, method)
        used = [(row, w) for row, w in zip(rows, pooling.weights, strict=True) if w > 0]
        members = []
        for row, _ in used:
            members.append(Member.of(group / folder(tuple(row["planes"]))))
            members[-1].check_unchanged(row["digest"])
        own = Pooling(tuple(w for _, w in used), pooling.temperature, pooling.over)
        return cls._of_members(members, own, device)

    @classmethod
    def _of_members(
        cls, members: Sequence[Member], pooling: Pooling, device: torch.device
    ) -> "FusedClassifier":
        data = manifest.load(members[0].run.path)
        predictors = [load_predictor(m.run, data, m.planes, device) for m in members]
        return cls(data, predictors, [m.planes for m in members], pooling)

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


def read_ensemble(group: Path, method: str | None = None) -> tuple[Pooling, list[dict[str, Any]]]:
    """How the networks of a group are pooled, and the row of each in ensemble.json."""
    with _reading(group) as content:
        chosen = method or content["method"]
        if chosen not in content["fused"]:
            there = ", ".join(content["fused"])
            raise ConfigError(f"{group / NAME} has no method {chosen}: there are {there}")
        found, rows = Pooling.read(content["fused"][chosen]), content["networks"]
        if len(found.weights) != len(rows):
            raise ValueError(f"{len(found.weights)} weights of {len(rows)} networks")
        return found, [{"planes": row["planes"], "digest": row["digest"]} for row in rows]


def default_method(group: Path) -> str:
    """What predictions of a fused group are made with."""
    with _reading(group) as content:
        return str(content["method"])


@contextmanager
def _reading(group: Path) -> Iterator[dict[str, Any]]:
    """The content of ensemble.json, and its errors."""
    path = group / NAME
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: run `spectral ensemble` again") from error


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
