"""What systems and programs leave among people's images: known by name, never taken for images."""

import os
from collections import Counter
from pathlib import Path, PurePosixPath

# fmt: off
_NAMES = frozenset((
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin",
    "system volume information", "icon\r", "__macosx", "@eadir", "@tmp", "#recycle", "#snapshot",
    "@recycle", "@recently-snapshot", "lost+found", "lost.dir", "picasa.ini", "pspbrwse.jbf",
    "zbthumbnail.info",
))
# fmt: on
_ENDINGS = (":zone.identifier", "@synoeastream", "@synoresource")


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is passed over: a hidden one, or a known one."""
    return junk_kind(name) is not None


def visible(folder: Path, junk: Counter[str] | None = None) -> list["os.DirEntry[str]"]:
    """What is in a folder, in no order, but for what is passed over, which is counted in `junk`."""
    found = [(entry, junk_kind(entry.name)) for entry in os.scandir(folder)]
    if junk is not None:
        junk.update(kind for _, kind in found if kind is not None)
    return [entry for entry, kind in found if kind is None]


def junk_in(path: str) -> str | None:
    """The kind of the first part of a path in an archive that is passed over, if there is one."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return next((found for found in map(junk_kind, parts) if found is not None), None)


def junk_kind(name: str) -> str | None:
    """What is said of it: known names as they are, of others what they have in common."""
    lower = name.lower()
    if lower in _NAMES:
        return name.strip()
    for ending in _ENDINGS:
        if lower.endswith(ending):
            return f"*{ending}"
    if name.startswith("._"):
        return "._*"
    if name == ".DS_Store":
        return name
    return "hidden (.*)" if name.startswith(".") else None


def counted(found: Counter[str]) -> str:
    """For people: `25 Thumbs.db, 3 @eaDir`."""
    return ", ".join(f"{count:,} {name}" for name, count in sorted(found.items()))
