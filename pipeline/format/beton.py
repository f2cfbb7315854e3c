"""The FFCV file format, version 2: its tables, and a .beton file in, labels and payloads out.

The format in full, for readers without this code: docs/format.md. The dtypes below
are FFCV's; a test holds them equal, since importing ffcv would load torch. Files are
written by `pipeline.format.beton_writer`.
"""

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128, xxh3_128_digest

from pipeline.errors import DamagedError
from pipeline.preparation import MOST_BYTES, Preparation

VERSION = 2
PAGE = MOST_BYTES  # no sample straddles a page, FFCV's process cache reads page-wise
PIECE = 1 << 20  # bytes of a file under one digest: of as many a resumed run reads the last again
PARTIAL = ".partial"

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
RGB_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
NDARRAY_ARGUMENTS = np.dtype([("shape", "<u8", 32), ("type_length", "<u8")])
LABEL = np.dtype("<i8")

# The field of `--codec zstd`: a custom one (type 255), ours.
PLANE = np.dtype([("ptr", "<u8"), ("size", "<u4")])
PLANE_ARGUMENTS = np.dtype([("channels", "<u1"), ("height", "<u2"), ("width", "<u2")])

TYPE_INT, TYPE_RGB_IMAGE, TYPE_NDARRAY, TYPE_CUSTOM = 1, 2, 4, 255
MODE_JPEG, MODE_RAW = 0, 1


@dataclass(frozen=True)
class ImageField:
    """How the image of each sample is stored: FFCV's field type, its arguments, its metadata."""

    type_id: int
    arguments: bytes
    metadata: np.dtype[Any]
    mode: int = 0

    @property
    def row(self) -> np.dtype[Any]:
        """The metadata of one sample: the image's, then the label."""
        return np.dtype([("f0", self.metadata), ("f1", LABEL)], align=True)

    @property
    def pointer(self) -> str | None:
        """Name of the pointer within the image's metadata; None where it is all of it."""
        return {TYPE_RGB_IMAGE: "data_ptr", TYPE_CUSTOM: "ptr"}.get(self.type_id)

    @property
    def allocates(self) -> bool:
        """Whether each sample needs a row in the allocation table (to know its size)."""
        return self.type_id != TYPE_CUSTOM


def image_field(prep: Preparation) -> ImageField:
    """The field in which a preparation stores its images."""
    channels, height, width = prep.plane_shape
    if prep.codec == "zstd":
        arguments = np.array([(channels, height, width)], PLANE_ARGUMENTS)
        return ImageField(TYPE_CUSTOM, arguments.tobytes(), PLANE)
    if prep.codec == "raw" and channels == 1:
        description = json.dumps(np.dtype(np.uint8).descr).encode()
        shape = np.zeros(1, NDARRAY_ARGUMENTS)
        shape["shape"][0][:3] = height, width, channels
        shape["type_length"] = len(description)
        return ImageField(TYPE_NDARRAY, shape.tobytes() + description, np.dtype("<u8"))
    mode = MODE_JPEG if prep.codec == "jpeg" else MODE_RAW
    return ImageField(TYPE_RGB_IMAGE, b"", RGB_IMAGE, mode)


def digest(path: Path) -> str:
    """XXH3 (128 bits) over the digests of a file's pieces of 1 MiB, in hexadecimal: against damage,
    not attacks, in a twentieth of the time of SHA-256.

    By pieces, so that a writer that fills them in order never reads them again.
    """
    outer = xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            outer.update(xxh3_128_digest(piece))
    return outer.hexdigest()


class BetonReader:
    """Read access without FFCV: header, labels and payloads, checked against the file's size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if not self.size:
                    raise DamagedError(f"{path} is empty")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DamagedError(f"cannot read {path}: {error.strerror}") from error
        self._read_header()
        self._read_tables()

    def _table(self, dtype: np.dtype[Any], count: int, at: int, what: str) -> NDArray[Any]:
        if at + count * dtype.itemsize > self.size:
            raise DamagedError(
                f"{self.path} is truncated: its {what} end at byte {at + count * dtype.itemsize}, "
                f"the file at {self.size}; copy or prepare it again"
            )
        return np.frombuffer(self._map, dtype, count, at)

    def _read_header(self) -> None:
        header = self._table(HEADER, 1, 0, "header")[0]
        version, fields = int(header["version"]), int(header["num_fields"])
        if version != VERSION or not 1 <= fields <= 64:
            raise DamagedError(
                f"{self.path} is no FFCV file of version {VERSION} (it says version {version}, "
                f"{fields} fields): not a beton, unfinished or damaged"
            )
        self.samples, self.page_size = int(header["num_samples"]), int(header["page_size"])
        self._alloc_at = int(header["alloc_table_ptr"])
        self._descriptions = self._table(FIELD, fields, HEADER.itemsize, "fields")
        self.names = [
            bytes(f["name"]).split(b"\0")[0].decode("ascii", "replace") for f in self._descriptions
        ]

    def _read_tables(self) -> None:
        image = self._descriptions[0]
        type_id = int(image["type_id"])
        metadata = {TYPE_CUSTOM: PLANE, TYPE_RGB_IMAGE: RGB_IMAGE, TYPE_NDARRAY: np.dtype("<u8")}
        if self.names != ["image", "label"] or type_id not in metadata:
            raise DamagedError(
                f"{self.path}: fields {', '.join(self.names)} (image of type {type_id}): "
                "not written by this tool"
            )
        self.field = ImageField(type_id, bytes(image["arguments"]), metadata[type_id])
        at = HEADER.itemsize + self._descriptions.nbytes
        self.rows = self._table(self.field.row, self.samples, at, "sample tables")
        if self._alloc_at > self.size:
            raise DamagedError(f"{self.path} is truncated: {self.size} of {self._alloc_at} bytes")
        self._pointers = (
            self.rows["f0"][self.field.pointer] if self.field.pointer else self.rows["f0"]
        )
        if self.field.allocates:
            self._sizes = self._table(ALLOCATION, self.samples, self._alloc_at, "tables")["size"]
        else:
            self._sizes = self.rows["f0"]["size"]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, (samples,)."""
        return np.asarray(self.rows["f1"])

    @property
    def payload_sizes(self) -> NDArray[np.int64]:
        """Bytes of each payload, (samples,)."""
        return self._sizes.astype(np.int64)

    def shape(self, index: int) -> tuple[int, int, int]:
        """(channels, height, width) of a sample's image; channels of a JPEG are not known: 3."""
        if self.field.type_id == TYPE_RGB_IMAGE:
            row = self.rows["f0"][index]
            return 3, int(row["height"]), int(row["width"])
        if self.field.type_id == TYPE_CUSTOM:
            channels, height, width = np.frombuffer(self.field.arguments, PLANE_ARGUMENTS, 1)[0]
            return int(channels), int(height), int(width)
        h, w, c = np.frombuffer(self.field.arguments, NDARRAY_ARGUMENTS, 1)[0]["shape"][:3]
        return int(c), int(h), int(w)

    @property
    def codec(self) -> str:
        """`zstd`, `raw` or `jpeg`."""
        if self.field.type_id == TYPE_CUSTOM:
            return "zstd"
        jpeg = self.field.type_id == TYPE_RGB_IMAGE and self.samples > 0
        return "jpeg" if jpeg and self.rows["f0"]["mode"][0] == MODE_JPEG else "raw"

    def check(self, classes: int | None = None) -> None:
        """DamagedError if any row of the tables points beyond the file, or to no class."""
        starts, sizes = self._pointers.astype(np.uint64), self._sizes.astype(np.uint64)
        room = np.uint64(self.size)
        beyond = (starts > room) | (sizes > room - np.minimum(starts, room))
        if beyond.any():
            i = int(np.flatnonzero(beyond)[0])
            raise DamagedError(
                f"{self.path}: sample {i} points to byte {int(starts[i])} and on, the file ends at "
                f"{self.size}"
            )
        labels = self.labels
        strange = (labels < 0) | (labels >= (classes if classes is not None else 1 << 31))
        if strange.any():
            i = int(np.flatnonzero(strange)[0])
            raise DamagedError(f"{self.path}: the label of sample {i} is {int(labels[i])}")

    def payload(self, index: int) -> bytes:
        """The stored bytes of one sample."""
        start, size = int(self._pointers[index]), int(self._sizes[index])
        if start + size > self.size:
            raise DamagedError(
                f"{self.path}: sample {index} points to byte {start + size}, "
                f"the file ends at {self.size}"
            )
        return self._map[start : start + size]

    def runs(
        self, first: int, end: int
    ) -> Iterator[tuple[memoryview, NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """Samples whose payloads lie end to end: those, sizes, labels, and shapes (m, 2) as
        (height, width) in px, zero where a row does not have them.
        """
        starts, sizes = self._pointers[first:end].astype(np.int64), self.payload_sizes[first:end]
        breaks = np.flatnonzero(starts[1:] != starts[:-1] + sizes[:-1]) + 1
        image, data = self.rows["f0"][first:end], memoryview(self._map)
        shapes = np.zeros((len(sizes), 2), np.int32)
        if self.field.type_id == TYPE_RGB_IMAGE:
            shapes[:, 0], shapes[:, 1] = image["height"], image["width"]
        for a, b in pairwise([0, *breaks.tolist(), len(sizes)]):
            payload = data[int(starts[a]) : int(starts[b - 1] + sizes[b - 1])]
            yield payload, sizes[a:b], self.labels[first + a : first + b], shapes[a:b]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the tables; the map closes with the last array that looks into it."""
        del self.rows, self._pointers, self._sizes, self._descriptions
