"""The files and folders that images lie in: one module a kind, which lists its images and reads
them. What people keep in them, and what the labels are, say the layouts.
"""

from pathlib import Path
from typing import ClassVar

from pipeline.sources.index import Container, Place


class Opened:
    """A container that is being read: base of one class a kind."""

    by_parent: ClassVar[bool] = False  # one process has to read it: in order, or all at once
    anywhere: ClassVar[bool] = True  # an image can be read without those before it

    def __init__(self, path: Path, container: Container, folder: Path) -> None:
        """folder: where the scan left what reading needs."""
        self.path, self.container = path, container

    def read(self, place: Place) -> bytes:
        """An image file, or of a container with a shape the pixels."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file."""
