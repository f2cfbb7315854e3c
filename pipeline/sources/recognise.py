"""A path in, the layout that it has out; or what was found there, and what is accepted."""

from pathlib import Path

from pipeline.errors import SourceError
from pipeline.index import some
from pipeline.sources.base import Source
from pipeline.sources.class_tars import ClassTars, WholeTar
from pipeline.sources.folders import ClassFolders
from pipeline.sources.ilsvrc import IlsvrcTars
from pipeline.sources.imagenetv2 import ImageNetV2Tar
from pipeline.sources.webdataset import WebDataset

# The first that recognises a path has it: special ones come before general ones.
LAYOUTS: tuple[type[Source], ...] = (
    IlsvrcTars,
    WebDataset,
    ClassTars,
    ImageNetV2Tar,
    WholeTar,
    ClassFolders,
)


def recognise(root: Path) -> Source:
    """The source at `root`, by what is found there."""
    if not root.exists():
        raise SourceError(f"--source {root}: no such file or directory")
    for layout in LAYOUTS:
        if layout.recognises(root):
            return layout(root)
    raise SourceError(f"--source {root}: {_found(root)}; accepted are\n{accepted()}")


def accepted() -> str:
    """One line for each layout."""
    return "\n".join(f"  {layout.layout}: {layout.looks_like}" for layout in LAYOUTS)


def _found(root: Path) -> str:
    if not root.is_dir():
        return f"a file of {root.stat().st_size:,} bytes whose content is not known"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    return f"a folder with {some(names)}" if names else "an empty folder"
