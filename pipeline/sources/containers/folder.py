"""Folders of image files, at any depth."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.containers import Opened
from pipeline.sources.find import irregular
from pipeline.sources.index import Member, Place
from pipeline.sources.junk import visible
from pipeline.sources.scan import Scan


class Folder(Opened):
    """Members are paths below it."""

    def read(self, place: Place) -> bytes:
        """A whole file."""
        return (self.path / place.member).read_bytes()


def image_files(
    folder: Path, within: str, scan: Scan, *, required: bool = True, but: str = "/"
) -> list[tuple[str, Member]]:
    """The files of `folder`/`within`, sorted by their paths in it; hidden ones and the like are
    left out, and those that end in `but`. SourceError if there are none but have to be.
    """
    odd: list[str] = []
    found = sorted(path for path in _files(folder / within, scan, odd) if not path.endswith(but))
    scan.note_irregular(sorted(odd))
    if not found and required and not odd:
        raise SourceError(
            f"{folder / within} is an empty class: add its images or remove the folder"
        )
    return [(path, Member(f"{within}/{path}" if within else path)) for path in found]


def _files(folder: Path, scan: Scan, odd: list[str], within: str = "") -> Iterator[str]:
    """Paths in a folder; of what is no file, in `odd`, what it is."""
    scan.track(folder)
    for entry in visible(folder, scan.junk):
        if entry.is_file():
            yield within + entry.name
        elif entry.is_dir():
            _refuse_loop(Path(entry.path))
            yield from _files(Path(entry.path), scan, odd, f"{within}{entry.name}/")
        else:
            odd.append(f"{entry.path} is {irregular(Path(entry.path))}")


def _refuse_loop(folder: Path) -> None:
    if not folder.is_symlink():
        return
    target, here = folder.resolve(), folder.parent.resolve()  # the source may be a link itself
    if target == here or target in here.parents:
        raise SourceError(f"{folder} links to a folder that it lies in: remove the link")
