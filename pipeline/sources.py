"""A path that the user names in; what it is, an index of its images, and their bytes out.

One class a layout. An index lists every image once, with its class and split; ids are
paths within the source and never used as paths elsewhere.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from pipeline.errors import SourceError

SOURCE_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Index:
    """Every image of a source, in the order in which it is written.

    table: columns `id` (string), `split` (string), `label` (int32). classes: names by label.
    """

    table: pa.Table
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """SHA-256 of all ids, splits and labels, in hexadecimal."""
        result = hashlib.sha256("\0".join(self.classes).encode())
        for batch in self.table.to_batches():
            for column in batch.columns:
                for buffer in column.buffers():
                    if buffer is not None:
                        result.update(buffer)
        return result.hexdigest()


class Source(Protocol):
    """What each layout provides. Instances travel to worker processes."""

    @property
    def layout(self) -> str:
        """Name of the layout, as in datasets.toml."""

    @property
    def root(self) -> Path:
        """What the user named."""

    def index(self) -> Index:
        """List the images; SourceError when there is nothing to work with."""

    def read(self, sample_id: str) -> bytes:
        """The bytes of one image file."""


def recognise(path: Path) -> Source:
    """The source at `path`, by what is found there."""
    if not path.exists():
        raise SourceError(f"--source {path}: no such file or directory")
    if not path.is_dir():
        raise SourceError(f"--source {path} is a file; {_ACCEPTED}")
    if not any(path.iterdir()):
        raise SourceError(f"--source {path} is an empty folder; {_ACCEPTED}")
    return ClassFolders(path)


_ACCEPTED = "accepted are folders with {train,val}/<class>/<image> or <class>/<image>"


@dataclass(frozen=True)
class ClassFolders:
    """`{train,val}/<class>/*`, or `<class>/*`, which is all train. Labels: sorted names."""

    root: Path
    layout: str = "class-folders"

    def index(self) -> Index:
        """Sorted by split, class, then path within the class folder."""
        levels = [split for split in SOURCE_SPLITS if (self.root / split).is_dir()]
        if levels and "train" not in levels:
            raise SourceError(f"{self.root} has {levels[0]}/ but no train/; {_ACCEPTED}")
        _refuse_stray(self.root, levels)
        folders = {split: self.root / split for split in levels} or {"train": self.root}
        classes = _class_names(folders["train"])
        label_of = {name: label for label, name in enumerate(classes)}
        ids: list[str] = []
        splits: list[str] = []
        labels: list[int] = []
        for split, folder in folders.items():
            names = _class_names(folder)
            if stray := sorted(set(names) - set(label_of)):
                raise SourceError(
                    f"{folder} has classes that {folders['train']} lacks: {_some(stray)}"
                )
            for name in names:
                found = _images(folder / name, split == "train")
                ids += [os.path.relpath(path, self.root) for path in found]
                splits += [split] * len(found)
                labels += [label_of[name]] * len(found)
        return Index(_table(ids, splits, labels), tuple(classes))

    def read(self, sample_id: str) -> bytes:
        """The whole file."""
        return (self.root / sample_id).read_bytes()


def _table(ids: list[str], splits: list[str], labels: list[int]) -> pa.Table:
    try:
        names = pa.array(ids, pa.string())
    except UnicodeEncodeError as error:
        raise SourceError(f"a file name is not valid UTF-8: {error.object!r}; rename it") from error
    return pa.table({"id": names, "split": splits, "label": pa.array(labels, pa.int32())})


def _refuse_stray(root: Path, levels: list[str]) -> None:
    """Folders beside train/ and val/ would be left out in silence: say so instead."""
    if not levels:
        return
    stray = [e.name for e in os.scandir(root) if e.is_dir() and e.name not in levels]
    if stray := sorted(name for name in stray if not name.startswith(".")):
        raise SourceError(
            f"{root} has {' and '.join(levels)} and also {_some(stray)}: not known what they are; "
            "move them away or name a folder that holds only train and val"
        )


def _class_names(folder: Path) -> list[str]:
    entries = [e for e in os.scandir(folder) if not e.name.startswith(".")]
    names = sorted(e.name for e in entries if e.is_dir())
    if not names:
        raise SourceError(f"{folder} has no class folders; {_ACCEPTED}")
    if files := sorted(e.name for e in entries if not e.is_dir()):
        raise SourceError(
            f"{folder} has files beside its class folders: {_some(files)}; "
            "each image belongs into the folder of its class, move the rest away"
        )
    return names


def _images(folder: Path, required: bool) -> list[str]:
    found = sorted(_walk(folder))
    if not found and required:
        raise SourceError(f"{folder} is an empty class: add its images or remove the folder")
    return found


def _walk(folder: Path) -> Iterator[str]:
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            _refuse_loop(Path(entry.path))
            yield from _walk(Path(entry.path))
        elif entry.is_file():
            yield entry.path
        else:
            kind = "a broken link" if entry.is_symlink() else "no regular file"
            raise SourceError(f"{entry.path} is {kind}: remove it or put the image there")


def _refuse_loop(folder: Path) -> None:
    if folder.is_symlink() and folder.resolve() in folder.absolute().parents:
        raise SourceError(f"{folder} links to a folder that it lies in: remove the link")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
