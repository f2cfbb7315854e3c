"""The bytes of images, from whatever container they lie in.

Workers read whole files and byte ranges themselves (`Reader`); what one process has to read (gzip,
Parquet, arrays), the parent does (`Feeder`).
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from pipeline.sources.containers import Opened
from pipeline.sources.containers.array import ArrayReader
from pipeline.sources.containers.folder import Folder
from pipeline.sources.containers.gzip import GzipReader
from pipeline.sources.containers.parquet import ParquetReader
from pipeline.sources.containers.tar import TarReader
from pipeline.sources.index import Container, Place

KINDS: dict[str, type[Opened]] = {
    "folder": Folder,
    "tar": TarReader,
    "gzip": GzipReader,
    "parquet": ParquetReader,
    "array": ArrayReader,
}


class Reader:
    """Reads from containers, of which it keeps a few open."""

    at_once = 64

    def __init__(
        self, root: Path, containers: Sequence[Container], folder: Path | None = None
    ) -> None:
        """folder: where the scan left what reading needs."""
        self.root, self.containers, self.folder = root, containers, folder or root
        self._open: OrderedDict[int, Opened] = OrderedDict()

    def read(self, place: Place) -> bytes:
        """The bytes of one image file, or of a container with a shape its pixels; OSError where
        they cannot be read.
        """
        if place.file not in self._open:
            if len(self._open) >= self.at_once:
                self._open.popitem(last=False)[1].close()
            container = self.containers[place.file]
            kind, path = KINDS[container.kind], self.root / container.path
            self._open[place.file] = kind(path, container, self.folder)
        self._open.move_to_end(place.file)
        return self._open[place.file].read(place)


class Feeder(Reader):
    """Reads what workers cannot, best in the order of the index."""

    at_once = 1

    @property
    def needed(self) -> bool:
        """Whether there is anything of that sort."""
        return any(KINDS[container.kind].by_parent for container in self.containers)

    def feeds(self, place: Place) -> bool:
        """Whether it is for the feeder to read this."""
        return KINDS[self.containers[place.file].kind].by_parent


def read_alone(root: Path, containers: Sequence[Container], place: Place) -> bytes | None:
    """One image; None if all images before it would have to be read, too."""
    if not KINDS[containers[place.file].kind].anywhere:
        return None
    return Feeder(root, containers).read(place)
