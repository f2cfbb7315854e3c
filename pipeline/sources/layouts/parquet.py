"""Parquet files as on the hub of Hugging Face: `data/train-00000-of-00294.parquet`, …"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.files import from_json, whole_number
from pipeline.sources.classes import numbered_classes
from pipeline.sources.containers.parquet import (
    files_column,
    is_integer,
    numbers,
    refuse_paths_alone,
    schema_of,
)
from pipeline.sources.find import few_subfolders, gaps, natural, refuse_irregular, single
from pipeline.sources.index import Member
from pipeline.sources.scan import Scan, Source
from pipeline.sources.split_names import SPLIT_NAMES

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")
_NAME = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?:[-_.].*)?\.parquet", re.IGNORECASE)
_PART = re.compile(r"-([0-9]+)-of-([0-9]+)")
_MOST_CLASSES = 1_000_000  # a label beyond is a mistake
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """One file. split: as its name says, `val` for all ways to write it."""

    path: Path
    split: str


class Parquet(Source):
    """Images as files within a column, one file of rows after the other."""

    layout = "parquet"
    accepts = (
        "a folder with {train,validation,test}-*.parquet, or with data/ that holds them; columns "
        "image (bytes, or struct with bytes) and label"
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the names of the files."""
        return bool(_folders(root))

    def scan(self, scan: Scan) -> None:
        """In the order of the numbers in file names. Labels are those of the label column."""
        folder = single(self.root, _folders(self.root))
        scan.track(folder)
        other = [path.name for path in folder.glob("*.parquet") if not _NAME.fullmatch(path.name)]
        if other:
            log.warning(
                "%s: left out, as no split is in the name: %s", folder, first_few(sorted(other))
            )
        parts = _parts(folder)
        for part in parts:
            refuse_irregular(part.path)
        if folders := [part.path.name for part in parts if part.path.is_dir()]:
            raise SourceError(f"{folder}: {first_few(folders)} is a folder: put the file there")
        parts = _split_of_test(parts)
        _warn_of_missing(parts)
        if not any(part.split == "train" for part in parts):
            raise SourceError(f"{folder} has no train-*.parquet; {self.accepts}")
        names = _class_names(parts)
        seen: dict[int, int] = {}
        for part in parts:
            _add(scan, part, len(names) if names else None, seen)
        keys = numbered_classes(range(len(names)) if names else seen, folder)
        scan.finish(keys, dict(zip(keys, names, strict=True)) if names else None)


def _folders(root: Path) -> list[Path]:
    return [folder for folder in (root, *few_subfolders(root)) if _parts(folder)]


def _parts(folder: Path) -> list[_Part]:
    """train, val, test, each sorted by the numbers in its names."""
    found: dict[str, list[_Part]] = {"train": [], "val": [], "test": []}
    for name in sorted((path.name for path in folder.glob("*.parquet")), key=natural):
        if match := _NAME.fullmatch(name):
            split = SPLIT_NAMES[match[1].lower()]
            found[split].append(_Part(folder / name, split))
    return [part for parts in found.values() for part in parts]


def _split_of_test(parts: list[_Part]) -> list[_Part]:
    """A test split without labels is left out; one with labels is val where there is none."""
    test = [part for part in parts if part.split == "test"]
    rest = [part for part in parts if part.split != "test"]
    if not test:
        return parts
    if not any(_has_labels(part.path) for part in test):
        log.warning("%s: the test split has no labels: left out", test[0].path.parent)
        return rest
    split = "test" if any(part.split == "val" for part in parts) else "val"
    return rest + [_Part(part.path, split) for part in test]


def _has_labels(path: Path) -> bool:
    column = _first(LABEL_COLUMNS, schema_of(path).names)
    return column is not None and any(label not in (None, -1) for label in numbers(path, column))


def _warn_of_missing(parts: list[_Part]) -> None:
    """`train-00003-of-00294` that is not there, or `train-3` between 2 and 4."""
    plain = [part.path.name for part in parts if not _PART.search(part.path.name)]
    if missing := gaps(plain):
        log.warning("%s: files are missing: %s", parts[0].path.parent, first_few(missing))
    numbers: dict[tuple[str, int], set[int]] = {}
    for part in parts:
        if match := _PART.search(part.path.name):
            numbers.setdefault((part.split, int(match[2])), set()).add(int(match[1]))
    for (split, count), found in numbers.items():
        if missing := [f"{n:05d}" for n in range(count) if n not in found]:
            log.warning(
                "%s: %d of %d files of %s are missing: %s",
                parts[0].path.parent, len(missing), count, split, first_few(missing),
            )  # fmt: skip


def _class_names(parts: list[_Part]) -> list[str] | None:
    """As the hub writes them into the schema; None where they are not."""
    schema = schema_of(parts[0].path)
    try:
        features = from_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[_first(LABEL_COLUMNS, schema.names)]["names"]
        if isinstance(names, dict):  # {"0": …}, as older versions of the library wrote them
            by_label = {whole_number(key): name for key, name in names.items()}
            names = [by_label[label] for label in range(len(names))]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def _add(scan: Scan, part: _Part, classes: int | None, seen: dict[int, int]) -> None:
    """All rows of a file. seen: images of train by label, which are the ranks."""
    images, labels = _columns(part.path)
    refuse_paths_alone(part.path, images)
    file = scan.container(part.path, "parquet", column=images)
    for row, label in enumerate(numbers(part.path, labels)):
        known = _checked(label, classes, part.path, row)
        rank = seen.setdefault(known, 0)
        seen[known] += part.split == "train"
        name = f"{part.path.stem}/{row}"
        scan.add(part.split, str(known), name, file, Member(str(row)), rank)


def _checked(label: int | None, classes: int | None, path: Path, row: int) -> int:
    most = _MOST_CLASSES if classes is None else classes
    if label is None or not 0 <= label < most:
        raise SourceError(f"{path}: row {row} has label {label}, expected 0 to {most - 1}")
    return label


def _columns(path: Path) -> tuple[str, str]:
    """Those of the images and of the labels."""
    schema = schema_of(path)
    images, labels = (_first(known, schema.names) for known in (IMAGE_COLUMNS, LABEL_COLUMNS))
    files = files_column(path, images) if images else None
    if files and labels and is_integer(schema.field(labels).type):
        return files, labels
    found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
    raise SourceError(
        f"{path} has the columns {found}; expected {' or '.join(IMAGE_COLUMNS)} (binary, or a "
        f"struct with bytes) and {' or '.join(LABEL_COLUMNS)} (whole numbers)"
    )


def _first(wanted: tuple[str, ...], names: list[str]) -> str | None:
    return next((name for name in wanted if name in names), None)
