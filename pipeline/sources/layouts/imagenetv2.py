"""ImageNet-V2: folders named by class numbers, in an archive or unpacked; all is val."""

import logging
import re
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.sources.containers.tar import first_members, iter_members, scanned_tar
from pipeline.sources.find import single, subfolders
from pipeline.sources.layouts.folders import add_class_folders, class_folder_names
from pipeline.sources.scan import Scan, Source

CLASSES = [str(number) for number in range(1000)]
log = logging.getLogger(__name__)
_MEMBER = re.compile(r"(?:^|/)([0-9]{1,9})/[^/]+$")


class ImageNetV2(Source):
    """Folders whose names are class numbers: all val."""

    layout = "imagenetv2"
    accepts = "a folder imagenetv2* with <class number>/<image>, all val"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By its name, or by 1000 numbers; fewer may as well be classes to train on."""
        return bool(_trees(root))

    def scan(self, scan: Scan) -> None:
        """The folders' names are the labels: as numbers, not sorted as text."""
        tree = single(self.root, _trees(self.root))
        found = sorted(int(name) for name in class_folder_names(tree))
        classes = [str(label) for label in range(found[-1] + 1)]
        if missing := [name for name in classes if int(name) not in set(found)]:
            log.warning("%s has no folders %s", tree, first_few(missing))
        scan.track(tree)
        add_class_folders(scan, tree, "val", [str(label) for label in found], str(tree))
        scan.finish(classes)


class ImageNetV2Tar(Source):
    """`imagenetv2-…/<0 to 999>/<image>` in a tar. Labels: the numbers. All images are val."""

    layout = "imagenetv2-tar"
    accepts = "imagenetv2-*-format-val.tar.gz, with folders 0 to 999 (all val)"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """A numbered folder comes first, and a name says what it is."""
        return any(
            _MEMBER.search(member.name) and "imagenetv2" in f"{root.name}/{member.name}".lower()
            for member in first_members(root)
        )

    def scan(self, scan: Scan) -> None:
        """As packed."""
        seen: set[tuple[str, str]] = set()
        with scanned_tar(self.root, scan) as (stream, file):
            for member in iter_members(stream, str(self.root), junk=scan.junk):
                key = self._key(member.name)
                if (key, member.base) in seen:
                    raise SourceError(f"{self.root}: {member.name} comes twice in it")
                seen.add((key, member.base))
                scan.add("val", key, member.base, file, member)
        scan.finish(CLASSES)

    def _key(self, name: str) -> str:
        found = _MEMBER.search(name)
        if found is None or int(found[1]) >= len(CLASSES):
            raise SourceError(f"{self.root}: {name} is in no folder named 0 to {len(CLASSES) - 1}")
        return str(int(found[1]))


def _trees(root: Path) -> list[Path]:
    named = [folder for folder in subfolders(root) if folder.name.startswith("imagenetv2")]
    return [tree for tree in (root, *named) if _is_one(tree)]


def _is_one(tree: Path) -> bool:
    """Missing folders are no reason to take numbers for names."""
    names = [folder.name for folder in subfolders(tree)]
    if not names or not all(name in CLASSES for name in names):
        return False
    return tree.absolute().name.startswith("imagenetv2") or len(names) > 0.9 * len(CLASSES)
