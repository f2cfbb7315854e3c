"""ImageNet-21K and its like: a tar for each class, in a folder or in one large archive."""

import logging
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.sources.classes import FILES, class_names
from pipeline.sources.containers.tar import (
    Stream,
    first_members,
    images_of_class,
    iter_members,
    open_tar,
    scanned_tar,
    tars_in,
)
from pipeline.sources.find import subfolders
from pipeline.sources.junk import visible
from pipeline.sources.scan import Scan, Source
from pipeline.sources.split_names import refuse_split_tar, refuse_split_tars

log = logging.getLogger(__name__)


class ClassTars(Source):
    """A folder of `<class>.tar`. Labels: sorted names. All images are train."""

    layout = "class-tars"
    accepts = "a folder with <class>.tar for each class (all train), as of ImageNet-21K"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Tars, and no folders beside them."""
        return bool(tars_in(root)) and not subfolders(root)

    def scan(self, scan: Scan) -> None:
        """Sorted by class; within a class as packed."""
        tars = tars_in(self.root)
        taken = {path.name for path in tars}
        names = {entry.name for entry in visible(self.root, scan.junk)}
        _warn_left_out(str(self.root), sorted(names - {*FILES} - taken))
        scan.track(self.root)
        refuse_split_tars(self.root, [path.stem for path in tars])
        for path in tars:
            with open_tar(path) as stream:
                members = list(iter_members(stream, str(path), junk=scan.junk))
            if any(member.name.endswith(".tar") for member in members):
                raise SourceError(
                    f"{path} holds tars, not the images of a class: if it is the archive of all "
                    f"classes, use --source {path}"
                )
            refuse_split_tar(self.root, path.stem, [member.name for member in members])
            file = scan.container(path, "tar")
            scan.add_class(path.stem, images_of_class(members, str(path)), file)
        scan.finish(names=class_names(self.root))


class WholeTar(Source):
    """A tar of `<class>.tar`, plain or in gzip. Labels: sorted names. All images are train."""

    layout = "whole-tar"
    accepts = (
        "a .tar or .tar.gz of <class>.tar (all train), as winter21_whole.tar.gz of ImageNet-21K"
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """There is a tar among its first files."""
        return any(member.name.endswith(".tar") for member in first_members(root, 3))

    def scan(self, scan: Scan) -> None:
        """As packed."""
        with scanned_tar(self.root, scan) as (stream, file):
            scan_inner_tars(stream, self.root, scan, file)
        scan.finish(names=class_names(self.root.parent))


def scan_inner_tars(stream: Stream, path: Path, scan: Scan, file: int) -> set[str]:
    """List the images of every `<class>.tar` in the tar that `stream` is; the classes."""
    classes: set[str] = set()
    left_out = []
    for outer in iter_members(stream, str(path), junk=scan.junk):
        if not outer.name.endswith(".tar"):
            left_out.append(outer.name)
            continue
        where = f"{path}: {outer.base}"
        if outer.stem in classes:
            raise SourceError(f"{where} comes twice in it")
        classes.add(outer.stem)
        members = list(iter_members(stream, where, outer.offset, outer.size, junk=scan.junk))
        scan.add_class(outer.stem, images_of_class(members, where, outer.name), file)
    if not classes:
        raise SourceError(f"{path} holds no <class>.tar; {WholeTar.accepts}")
    refuse_split_tars(path, sorted(classes))
    _warn_left_out(str(path), left_out)
    return classes


def _warn_left_out(where: str, names: list[str]) -> None:
    if names:
        log.warning("%s: left out, as they are no <class>.tar: %s", where, first_few(names))
