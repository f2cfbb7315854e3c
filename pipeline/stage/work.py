"""One task in, its chunk out: images are decoded, split and coded, and what they hold is summed."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import BadImageError
from pipeline.format.codec import Payloads, decode_whole, encoder
from pipeline.planes.imaging import load, packed, pixels
from pipeline.planes.kernels.moments import add_moments
from pipeline.planes.splitter import Splitter
from pipeline.preparation import Preparation
from pipeline.sources.reading import Reader
from pipeline.stage.messages import ERROR_UNIT, Chunk, Errors, Moments, Task
from pipeline.stage.shared import BETWEEN, DECODING, READING, Step


class Processor:
    """Everything that work on one preparation takes. at: is told of each step."""

    def __init__(self, prep: Preparation, reader: Reader, at: Callable[[Step], None]) -> None:
        self.prep, self.reader, self.at = prep, reader, at
        self.encode, self.payloads = encoder(prep), Payloads(prep.splits)
        self.splitter = Splitter(prep) if prep.splits > 1 else None
        self.planes = self.splitter.empty() if self.splitter else None

    def warm_up(self) -> None:
        """Load all compiled code now, while other workers do, not with the first task."""
        prep = self.prep
        blank = Image.new("L" if prep.channels == 1 else "RGB", (prep.size, prep.size))
        self._store(self._pixels(blank), Moments.zero(prep))

    def process(self, task: Task, room: NDArray[np.uint8]) -> Chunk:
        """The chunk; its payloads lie in `room` if they fit."""
        for i in task.trial:
            self._chunk(task, room, [i])
        return self._chunk(task, room, range(len(task.places)))

    def _chunk(self, task: Task, room: NDArray[np.uint8], chosen: Sequence[int]) -> Chunk:
        self.payloads.start(room)
        train = other = Moments.zero(self.prep)
        errors = Errors.zero(self.prep)
        shapes = np.zeros((len(task.places), 2), np.int32)
        reasons: list[str | None] = []
        stored_shapes = []
        for i in chosen:
            reason = task.refused.get(i)
            if reason is None:
                try:
                    image, shapes[i] = self._load(task, i)
                    moments = self._store(image, Moments.zero(self.prep))
                    if i < task.train:
                        train += moments
                    else:
                        other += moments
                    stored_shapes.append(self._stored_shape(image))
                    if task.measured[i]:
                        errors += self._measure(image)
                except BadImageError as error:
                    reason = str(error)
            reasons.append(reason)
        self.at(Step(task.number, 0, BETWEEN))
        sizes = np.ascontiguousarray(self.payloads.sizes().T)
        shape_table = np.array(stored_shapes, np.int32).reshape(-1, 2)
        inline = None if self.payloads.in_room else self.payloads.rows.tobytes()
        return Chunk(task.number, reasons, shapes, sizes, shape_table, train, other, errors, inline)

    def _load(self, task: Task, i: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        place = task.places[i]
        self.at(Step(task.number, i, READING))
        data = self.reader.read(place) if task.data is None else task.data[i]
        self.at(Step(task.number, i, DECODING))
        image, size = load(data, self.prep, self.reader.containers[place.file].shape)
        return self._pixels(image), size

    def _pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """(H, W, channels), or where it is split as `packed` gives them."""
        return pixels(image) if self.splitter is None else packed(image)

    def _stored_shape(self, image: NDArray[np.uint8]) -> tuple[int, ...]:
        """(height, width) of each payload of an image."""
        return image.shape[:2] if self.splitter is None else self.prep.plane_shape[1:]

    def _store(self, image: NDArray[np.uint8], zero: Moments) -> Moments:
        """Add an image to the payloads; its moments. zero: whose arrays are filled."""
        planes: NDArray[Any]
        if self.splitter is None or self.planes is None:
            self.encode(image, self.payloads)
            planes = image.transpose(2, 0, 1).reshape(1, image.shape[2], -1)
        else:
            self.splitter.split(image, self.planes, zero.clipped)
            self.encode(self.planes, self.payloads)
            planes = self.planes.reshape(self.prep.splits, self.prep.channels, -1)
        add_moments(planes, zero.first, zero.second)
        return Moments(planes.shape[2], zero.first, zero.second, zero.clipped)

    def _measure(self, image: NDArray[np.uint8]) -> Errors:
        if self.splitter is None or self.planes is None:
            height, width, channels = image.shape
            stored = decode_whole(self.payloads.last(0), self.prep.codec, (channels, height, width))
            error = _squares(stored.astype(np.float32) - image)
            return Errors(1, image.size, error, np.array([error]))
        image = image[:, :, : self.prep.channels]
        rebuilt = self.splitter.rebuild(self.planes)
        planes = self.splitter.dequantise(self.planes) - self.splitter.coefficients(image)
        return Errors(
            1,
            image.size,
            _squares(rebuilt.astype(np.float32) - image),
            np.array([_squares(plane) for plane in planes]),
        )


def _squares(values: NDArray[np.float32]) -> int:
    # Not a dot product: BLAS would give sums that depend on the number of threads.
    return round(float(np.sum(values * values, dtype=np.float64)) * ERROR_UNIT)
