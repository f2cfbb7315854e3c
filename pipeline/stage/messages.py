"""What travels between the parent and its workers: a `Task` there, an `Answer` back.

Nothing of it is changed once it is made. Payloads do not travel: they lie in shared memory.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.preparation import Preparation
from pipeline.sources.index import Place

ERROR_UNIT = 1 << 20


@dataclass(frozen=True)
class Task:
    """Samples to work on. `measured`: whether to measure the PSNR of each. train: so many of them,
    the first ones, belong to the split train. ids: for people. data: the bytes of each, where the
    parent has read them.

    What the pool adds: slot: of shared memory, for the payloads. sizes: data lie in the slot, so
    long each. refused: reasons of samples that are to be left out, by position. trial: positions
    to try one by one before the work begins, as it has ended badly before.
    """

    number: int
    places: list[Place]
    measured: list[bool]
    train: int
    ids: list[str]
    data: list[bytes] | None = None
    slot: int = 0
    sizes: list[int] | None = None
    refused: dict[int, str] = field(default_factory=dict)
    trial: list[int] = field(default_factory=list)


class _Sums:
    """Fields that are whole numbers, alone or in arrays, and add up in any order."""

    def __add__(self, other: Self) -> Self:
        names = [entry.name for entry in fields(self)]  # type: ignore[arg-type]
        return type(self)(*(getattr(self, name) + getattr(other, name) for name in names))

    def to_json(self) -> list[Any]:
        """Numbers and lists."""
        return [np.asarray(value).tolist() for value in vars(self).values()]

    @classmethod
    def from_json(cls, content: list[Any]) -> Self:
        """The inverse of `to_json`."""
        values = (np.array(v, np.int64) if isinstance(v, list) else v for v in content)
        return cls(*values)


@dataclass(frozen=True)
class Moments(_Sums):
    """Exact sums over the pixels of samples (N planes, C channels): of values (N, C), of products
    (N, C, C), and how many values were clipped (N,).
    """

    pixels: int
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    clipped: NDArray[np.int64]

    @classmethod
    def zero(cls, prep: Preparation) -> Self:
        """Nothing added up yet."""
        n, c = prep.splits, prep.channels
        return cls(
            0, np.zeros((n, c), np.int64), np.zeros((n, c, c), np.int64), np.zeros(n, np.int64)
        )


@dataclass(frozen=True)
class Errors(_Sums):
    """Squared errors of the measured samples: of the rebuilt image, and plane by plane (N,).

    Integers, in units of 1/ERROR_UNIT squared grey levels, so that they add up in any order.
    """

    samples: int
    values: int
    image: int
    planes: NDArray[np.int64]

    @classmethod
    def zero(cls, prep: Preparation) -> Self:
        """Nothing measured yet."""
        return cls(0, 0, 0, np.zeros(prep.splits, np.int64))


@dataclass(frozen=True)
class Chunk:
    """What came of a task. Lists and `shapes` (m, 2 as width, height of the source) have a
    place for every sample; `sizes` (N, stored) and `stored_shapes` for the stored ones. other:
    moments of the samples that do not belong to train.

    The payloads of plane k start at k/N of the task's slot, or of `inline`.
    """

    number: int
    reasons: list[str | None]
    shapes: NDArray[np.int32]
    sizes: NDArray[np.uint32]
    stored_shapes: NDArray[np.int32]
    train: Moments
    other: Moments
    errors: Errors
    inline: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """A chunk; or what went wrong, which ends the run; or neither: the worker is ready."""

    chunk: Chunk | None = None
    error: str = ""
