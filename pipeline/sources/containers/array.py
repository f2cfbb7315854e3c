"""Files that hold the pixels of many images, small enough for memory: CIFAR, the MNIST family."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.containers import Opened, cifar, idx
from pipeline.sources.containers.labelled import Arrays
from pipeline.sources.index import Container, Place, stamp

FORMS: dict[str, Callable[[Path], Arrays]] = {
    "idx": idx.load,
    **{variant.form: partial(cifar.load, variant) for variant in cifar.VARIANTS},
}


class ArrayReader(Opened):
    """Members are `<file>/<row>`, rows numbered from 0."""

    by_parent = True

    def __init__(self, path: Path, container: Container, folder: Path) -> None:
        super().__init__(path, container, folder)
        self._files = load(path, container.form).files

    def read(self, place: Place) -> bytes:
        """Height x width x channels bytes."""
        name, _, row = place.member.rpartition("/")
        if name not in self._files or int(row) >= len(self._files[name].pixels):
            raise SourceError(f"{self.path} has become shorter since it was indexed")
        return bytes(self._files[name].pixels[int(row)].tobytes())


def load(path: Path, form: str) -> Arrays:
    """All of a folder or archive, parsed once for listing and for reading."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return _load(path, form, tuple((file, *stamp(file)) for file in files if file.is_file()))


@lru_cache(maxsize=1)
def _load(path: Path, form: str, stamps: tuple[tuple[Path, int, int], ...]) -> Arrays:
    return FORMS[form](path)
