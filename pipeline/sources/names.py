"""Files that name wnids in, names of classes for people out."""

from pathlib import Path

FILES = ("LOC_synset_mapping.txt", "words.txt")


def class_names(folder: Path) -> dict[str, str] | None:
    """Names by wnid, of a file of `FILES` in `folder`; None where there is none."""
    for path in (folder / name for name in FILES):
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            pairs = (line.split(maxsplit=1) for line in lines)
            return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
    return None
