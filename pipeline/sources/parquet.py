"""Parquet files as on the hub of Hugging Face: `data/train-00000-of-00294.parquet`, …"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError, some
from pipeline.sources.base import Source
from pipeline.sources.find import few_subfolders, gaps, natural, only, refuse_broken_link
from pipeline.sources.index import Container, Place, Scan
from pipeline.sources.levels import SPLIT_NAMES
from pipeline.sources.names import numbered_classes

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")
_NAME = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?:[-_.].*)?\.parquet", re.IGNORECASE)
_PART = re.compile(r"-(\d+)-of-(\d+)")
_ROWS, _BATCH, _BUFFER = 64, 1 << 25, 1 << 20  # rows and bytes of a batch, bytes of a buffer
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
    looks_like = (
        "a folder with {train,validation,test}-*.parquet, or with data/ that holds them; columns "
        "image (bytes, or struct with bytes) and label"
    )

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the names of the files."""
        return bool(_folders(root))

    def scan(self, scan: Scan) -> None:
        """In the order of the numbers in file names. Labels are those of the label column."""
        folder = only(self.root, _folders(self.root))
        scan.saw(folder)
        other = [path.name for path in folder.glob("*.parquet") if not _NAME.fullmatch(path.name)]
        if other:
            log.warning("%s: left out, as no split is in the name: %s", folder, some(sorted(other)))
        parts = _parts(folder)
        for part in parts:
            refuse_broken_link(part.path)
        _refuse_irregular(parts)
        parts = _split_of_test(parts)
        _warn_of_missing(parts)
        if not any(part.split == "train" for part in parts):
            raise SourceError(f"{folder} has no train-*.parquet; {self.looks_like}")
        names = _class_names(parts)
        seen: dict[int, int] = {}
        for part in parts:
            _add(scan, part, len(names) if names else None, seen)
        keys = numbered_classes(range(len(names)) if names else seen, folder)
        scan.finish(keys, dict(zip(keys, names, strict=True)) if names else None)


def open_parquet(path: Path, container: Container) -> Callable[[Place], bytes]:
    """Reads in batches of some rows, whatever the size of a row group, best in their order; a null
    image has no bytes.
    """
    with _named(path):
        # with a buffer of its own, not filled ahead, a column is read page by page; else the whole
        # column of a row group lies in memory at once
        file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    group, first, images = -1, 0, pa.chunked_array([], pa.binary())
    batches: Iterator[pa.RecordBatch] = iter(())

    def read(place: Place) -> bytes:
        nonlocal group, first, images, batches
        if place.offset != group or place.size < first:
            group, first, images = place.offset, 0, images.slice(0, 0)
            with _named(path):
                rows = _rows_of_a_batch(file, group, container.inner)
                batches = file.iter_batches(rows, [group], [container.inner], use_threads=False)
        while place.size >= first + len(images):
            first += len(images)
            with _named(path):
                table = pa.Table.from_batches([next(batches)])
            images = table.flatten().column(container.inner)
        return images[place.size - first].as_py() or b""

    return read


def _rows_of_a_batch(file: Any, group: int, column: str) -> int:
    """So many that a batch of them is small, where images are as large as usual in their group."""
    found = file.metadata.row_group(group)
    columns = (found.column(i) for i in range(found.num_columns))
    size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == column)
    return max(1, min(_ROWS, int(_BATCH * found.num_rows / max(size, 1))))


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


def _refuse_irregular(parts: list[_Part]) -> None:
    """To open a pipe takes for ever, and a folder is no file."""
    if irregular := [str(part.path) for part in parts if not part.path.is_file()]:
        raise SourceError(f"{some(irregular)}: no regular file; put the file itself there")


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
    with _named(path):
        file = pq.ParquetFile(path)
    if not _first(LABEL_COLUMNS, file.schema_arrow.names):
        return False
    return any(label not in (None, -1) for labels in _labels(path) for label in labels)


def _warn_of_missing(parts: list[_Part]) -> None:
    """`train-00003-of-00294` that is not there, or `train-3` between 2 and 4."""
    plain = [part.path.name for part in parts if not _PART.search(part.path.name)]
    if missing := gaps(plain):
        log.warning("%s: files are missing: %s", parts[0].path.parent, some(missing))
    numbers: dict[tuple[str, int], set[int]] = {}
    for part in parts:
        if match := _PART.search(part.path.name):
            numbers.setdefault((part.split, int(match[2])), set()).add(int(match[1]))
    for (split, count), found in numbers.items():
        if missing := [f"{n:05d}" for n in range(count) if n not in found]:
            log.warning(
                "%s: %d of %d files of %s are missing: %s",
                parts[0].path.parent, len(missing), count, split, some(missing),
            )  # fmt: skip


def _class_names(parts: list[_Part]) -> list[str] | None:
    """As the hub writes them into the schema; None where they are not."""
    path = parts[0].path
    with _named(path):
        schema = pq.ParquetFile(path).schema_arrow
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[_first(LABEL_COLUMNS, schema.names)]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, dict):  # {"0": …}, as older versions of the library wrote them
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names] if isinstance(names, list) and names else None


def _add(scan: Scan, part: _Part, classes: int | None, seen: dict[int, int]) -> None:
    """All rows of a file. seen: images of train by label, which are the ranks."""
    column = _image_column(part.path)
    _refuse_paths_alone(part.path, column)
    file = scan.container(part.path, "parquet", inner=column)
    number = 0
    for group, labels in enumerate(_labels(part.path)):
        for row, label in enumerate(labels):
            known = _checked(label, classes, part.path, number)
            rank = seen.setdefault(known, 0)
            seen[known] += part.split == "train"
            scan.add(
                part.split, str(known), f"{part.path.stem}/{number}", file,
                member=str(number), offset=group, size=row, rank=rank,
            )  # fmt: skip
            number += 1


def _checked(label: int | None, classes: int | None, path: Path, row: int) -> int:
    most = _MOST_CLASSES if classes is None else classes
    if label is None or not 0 <= label < most:
        raise SourceError(f"{path}: row {row} has label {label}, expected 0 to {most - 1}")
    return label


def _labels(path: Path) -> Iterator[list[int | None]]:
    """Labels of each row group; of other columns nothing is read."""
    with _named(path):
        file = pq.ParquetFile(path)
        column = _first(LABEL_COLUMNS, file.schema_arrow.names)
        if column is None or not _is_integer(file.schema_arrow.field(column).type):
            raise _wrong_columns(path, file.schema_arrow)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, [column], use_threads=False).column(0).to_pylist()


def _image_column(path: Path) -> str:
    """`image`, or `image.bytes` of a struct."""
    with _named(path):
        schema = pq.ParquetFile(path).schema_arrow
    column = _first(IMAGE_COLUMNS, schema.names)
    if column is None:
        raise _wrong_columns(path, schema)
    kind = schema.field(column).type
    if _is_binary(kind):
        return column
    if pa.types.is_struct(kind) and any(f.name == "bytes" and _is_binary(f.type) for f in kind):
        return f"{column}.bytes"
    raise _wrong_columns(path, schema)


def _is_binary(kind: Any) -> bool:
    """However it is stored: polars writes views, some writers all of one length."""
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    types = pa.types
    known = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(is_one(kind) for is_one in (*known, types.is_fixed_size_binary))


def _is_integer(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind))


def _refuse_paths_alone(path: Path, column: str) -> None:
    """What a row says of paths is never followed; without bytes there is no image."""
    nulls = 0
    with _named(path):
        found = pq.ParquetFile(path).metadata
        for group in map(found.row_group, range(found.num_row_groups)):
            chunks = (group.column(i) for i in range(group.num_columns))
            known = next((c.statistics for c in chunks if c.path_in_schema == column), None)
            nulls += known.null_count if known is not None and known.has_null_count else 0
    if nulls and nulls == found.num_rows:
        raise SourceError(
            f"{path}: the column {column} is empty in all {nulls:,} rows: they hold paths at most, "
            "which are not followed. Write it with the images in it (the library datasets does so "
            "with `embed_external_files=True`), or name a folder of the image files"
        )


def _first(wanted: tuple[str, ...], names: list[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _wrong_columns(path: Path, schema: Any) -> SourceError:
    found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
    return SourceError(
        f"{path} has the columns {found}; expected {' or '.join(IMAGE_COLUMNS)} (binary, or a "
        f"struct with bytes) and {' or '.join(LABEL_COLUMNS)} (whole numbers)"
    )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What Arrow says of damage, with the file's name; errors of the machine pass."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names within the file
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename:
                raise
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise SourceError(f"{path} is damaged or not whole, expected Parquet: {error}") from error
