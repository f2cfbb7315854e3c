"""Places in a source in, the bytes of image files out.

Two ways: workers read whole files and byte ranges themselves (`Reader`); what can only be
read in order or in groups (gzip, Parquet, arrays) the parent reads and feeds (`Feeder`).
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.index import Container, Place

ReadPlace = Callable[[Place], bytes]
FED = ("gzip", "parquet", "array")
_OPEN_FILES = 64


class Reader:
    """Reads from containers of the kinds `folder` and `bytes`; keeps a few files open."""

    def __init__(self, root: Path, containers: list[Container]) -> None:
        self.root, self.containers = root, containers
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, place: Place) -> bytes:
        """The bytes of one image file; OSError where they cannot be read."""
        container = self.containers[place.file]
        if container.kind == "folder":
            return (self.root / container.path / place.member).read_bytes()
        data = os.pread(self._descriptor(place.file), place.size, place.offset)
        while len(data) < place.size:
            more = os.pread(
                self._descriptor(place.file), place.size - len(data), place.offset + len(data)
            )
            if not more:
                path = self.root / container.path
                raise SourceError(f"{path} has become shorter since it was indexed")
            data += more
        return data

    def _descriptor(self, file: int) -> int:
        if file not in self._open:
            if len(self._open) >= _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            path = self.root / self.containers[file].path
            self._open[file] = os.open(path, os.O_RDONLY)
        self._open.move_to_end(file)
        return self._open[file]


class Feeder:
    """Reads from containers of the kinds in FED, best in the order of the index.

    folder: where the scan left what it needs to seek (`gzip`). One container is open at a time.
    """

    def __init__(self, root: Path, containers: list[Container], folder: Path) -> None:
        self.root, self.containers, self.folder = root, containers, folder
        self._file = -1
        self._read: ReadPlace
        self.needed = any(container.kind in FED for container in containers)

    def feeds(self, place: Place) -> bool:
        """Whether it is for the feeder to read this."""
        return self.containers[place.file].kind in FED

    def read(self, place: Place) -> bytes:
        """The bytes of one image file, or of a container with a shape its pixels."""
        if place.file != self._file:
            self._read = self._opened(place.file)
            self._file = place.file
        return self._read(place)

    def _opened(self, file: int) -> ReadPlace:
        container = self.containers[file]
        path = self.root / container.path
        if container.kind == "gzip":
            from pipeline.sources.gzipped import open_gzip

            return open_gzip(path, self.folder)
        if container.kind == "parquet":
            from pipeline.sources.parquet import open_parquet

            return open_parquet(path, container)
        from pipeline.sources.arrays import open_array

        return open_array(path, container)
