"""What each layout provides: whether a path looks like it, and the list of its images."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.sources.index import Scan


@dataclass(frozen=True)
class Source:
    """Base of all layouts. `root` is what the user named."""

    root: Path
    layout: ClassVar[str]  # its name, as in datasets.toml
    looks_like: ClassVar[str]  # for people: what is accepted

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether `root` is laid out like this; cheap, by names and first bytes."""
        raise NotImplementedError

    def scan(self, scan: Scan) -> None:
        """List every image once and call `scan.finish`; SourceError if that cannot be done."""
        raise NotImplementedError
