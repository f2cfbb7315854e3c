"""Finds out which layout a path has, or says what is there and what is accepted."""

import os
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.sources.find import refuse_packed, visible_files
from pipeline.sources.junk import is_junk
from pipeline.sources.layouts.arrays import CifarBinary, CifarPython, Mnist
from pipeline.sources.layouts.class_tars import ClassTars, WholeTar
from pipeline.sources.layouts.folders import ClassFolders
from pipeline.sources.layouts.ilsvrc import IlsvrcTars
from pipeline.sources.layouts.imagenet21kp import ImageNet21KP, ImageNet21KPTar
from pipeline.sources.layouts.imagenetv2 import ImageNetV2, ImageNetV2Tar
from pipeline.sources.layouts.kaggle import Kaggle
from pipeline.sources.layouts.parquet import Parquet
from pipeline.sources.layouts.tiny import TinyImageNet
from pipeline.sources.layouts.webdataset import WebDataset
from pipeline.sources.scan import Source

LAYOUTS: tuple[type[Source], ...] = (  # the first that recognises a path has it
    CifarPython,
    CifarBinary,
    Mnist,
    Parquet,
    Kaggle,
    TinyImageNet,
    ImageNetV2,
    ImageNet21KP,
    IlsvrcTars,
    WebDataset,
    ClassTars,
    ImageNetV2Tar,
    ImageNet21KPTar,
    WholeTar,
    ClassFolders,
)


def recognise(root: Path) -> Source:
    """The source at `root`, by what is found there."""
    if not root.exists():
        raise SourceError(f"--source {root}: no such file or directory")
    if not root.is_dir() and not root.is_file():
        raise SourceError(f"--source {root} is neither a folder nor a regular file")
    try:
        for path in (root, *_only_file(root)):
            for layout in LAYOUTS:
                if layout.recognises(path):
                    return layout(path)
    except PermissionError as error:
        sought = Path(error.filename or root)
        if os.path.lexists(sought):
            raise
        # what was looked for may not be there at all: the folder is what cannot be read
        raise PermissionError(error.errno, error.strerror, str(sought.parent)) from error
    refuse_packed(visible_files(root) if root.is_dir() else [root])
    raise SourceError(f"--source {root}: {_found(root)}; accepted are\n{accepted()}")


def _only_file(root: Path) -> list[Path]:
    """The one file that a folder holds: a download in a folder of its own."""
    found = [path for path in root.iterdir() if not is_junk(path.name)] if root.is_dir() else []
    return found if len(found) == 1 and found[0].is_file() else []


def accepted() -> str:
    """One line for each layout."""
    return "\n".join(f"  {layout.layout}: {layout.accepts}" for layout in LAYOUTS)


def _found(root: Path) -> str:
    if not root.is_dir():
        return f"a file of {root.stat().st_size:,} bytes whose content is not known"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    return f"a folder with {first_few(names)}" if names else "an empty folder"
