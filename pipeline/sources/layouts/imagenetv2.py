"""ImageNet-V2 as an archive: folders named by class numbers, in no order."""

import re
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.containers.tar import first_members, scanned_tar, walk
from pipeline.sources.scan import Scan, Source

CLASSES = [str(number) for number in range(1000)]
_MEMBER = re.compile(r"(?:^|/)(\d+)/[^/]+$")


class ImageNetV2Tar(Source):
    """`imagenetv2-…/<0 to 999>/<image>` in a tar. Labels: the numbers. All images are val."""

    layout = "imagenetv2-tar"
    looks_like = "imagenetv2-*-format-val.tar.gz, with folders 0 to 999 (all val)"

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
            for member in walk(stream, str(self.root), junk=scan.junk):
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
