"""Parquet as programs other than the hub's library store it, and as caches lose it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.sources.containers.parquet import ParquetReader
from pipeline.sources.index import Container, Place
from tests.conftest import spectral_here
from tests.listing import listing, picture

PLAIN = {
    "large": pa.large_binary(),
    "view": pa.binary_view(),
    "fixed": pa.binary(2000),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
}
_UNWRITTEN = ("view", True)


@pytest.mark.parametrize(
    ("form", "nested"),  # views within a struct Arrow reads, but does not write
    [(form, nested) for form in PLAIN for nested in (False, True) if (form, nested) != _UNWRITTEN],
)
def test_bytes_in_every_form_that_arrow_has(form: str, nested: bool, tmp_path: Path) -> None:
    images = [picture().ljust(2000, b"\0") for _ in range(5)]
    kind = pa.binary() if form == "dictionary" else PLAIN[form]
    column: Any = pa.array(images, kind)
    column = column.dictionary_encode() if form == "dictionary" else column
    if nested:
        column = pa.StructArray.from_arrays([column, pa.array(["a"] * 5)], ["bytes", "path"])
    label = pa.array([0, 1, 0, 1, 0]).dictionary_encode()
    path = tmp_path / "a" / "train.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"image": column, "label": label}), path, row_group_size=3)
    stored = pq.ParquetFile(path).schema_arrow.field("image").type
    assert (stored.field("bytes").type if nested else stored) == PLAIN[form]
    found = listing(tmp_path / "a", tmp_path / "index")
    assert [row.data for row in found.rows.values()] == images
    assert found.labels("train") == [0, 1, 0, 1, 0]


def test_rows_that_hold_paths_alone_are_refused_with_the_reason(tmp_path: Path) -> None:
    """Even where the files are there: no path of a source is followed."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(picture())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": "0.jpg"}] * 4, kind)
    table = pa.table({"image": rows, "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "a" / "train.parquet", row_group_size=2)
    with pytest.raises(SourceError, match=r"image.bytes is empty in all 4 rows: they hold paths"):
        listing(tmp_path / "a", tmp_path / "index")


def test_a_broken_link_names_the_source(tmp_path: Path) -> None:
    """As in a snapshot of the hub's cache whose blobs are gone."""
    root = tmp_path / "snapshot" / "data"
    root.mkdir(parents=True)
    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), root / "train-0.parquet")
    (root / "train-1.parquet").symlink_to("../../blobs/abc")
    done = spectral_here(
        "prepare", "toy", "--source", root.parent, "--out", tmp_path / "out", "--splits", 4,
        "--size", 16,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert f"{root / 'train-1.parquet'} is a broken link (to ../../blobs/abc)" in line
    assert str(tmp_path / "out") not in line


def test_an_error_of_the_machine_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        ParquetReader(tmp_path / "gone.parquet", Container("", "parquet", "image"), tmp_path)
    assert caught.value.filename == str(tmp_path / "gone.parquet")


def test_a_nested_column_beyond_2_gib_in_one_row_group(tmp_path: Path) -> None:
    """A value that repeats takes no room on the disk; whole, the column would be 2.2 GiB."""
    image = np.random.default_rng(0).bytes(4 << 20)
    column = pa.DictionaryArray.from_arrays(np.zeros(560, np.int32), pa.array([image]))
    column = pa.StructArray.from_arrays([column, pa.array(["a"] * 560)], ["bytes", "path"])
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": column, "label": [0] * 560}), path, store_schema=False)
    assert pq.ParquetFile(path).num_row_groups == 1
    assert path.stat().st_size < 5 << 20
    read = ParquetReader(path, Container(str(path), "parquet", "image.bytes"), tmp_path).read
    assert all(read(Place(0, str(row), 0, 0)) == image for row in (0, 559))


def test_memory_does_not_grow_with_the_size_of_images(tmp_path: Path) -> None:
    """64 rows of 2 MiB at once would be 128 MiB."""
    noise = np.random.default_rng(0).bytes(2 << 20)
    images = [bytes([i]) + noise[1:] for i in range(80)]
    path = tmp_path / "train.parquet"
    table = pa.table({"image": [{"bytes": i} for i in images], "label": [0] * 80})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_batch_size=1)
    del table
    before = pa.total_allocated_bytes()
    read = ParquetReader(path, Container(str(path), "parquet", "image.bytes"), tmp_path).read
    for row in (0, 79):
        assert read(Place(0, str(row), 0, 0)) == images[row]
        assert pa.total_allocated_bytes() - before < 100e6


@pytest.mark.chaos
def test_a_nested_column_of_large_images_in_one_row_group(tmp_path: Path) -> None:
    """560 different images of 4 MiB."""
    rng = np.random.default_rng(0)
    heads, tail = [rng.bytes(64) for _ in range(560)], bytes((4 << 20) - 64)
    tables = [
        pa.table(
            {"image": [{"bytes": head + tail} for head in heads[i : i + 40]], "label": [0] * 40}
        )
        for i in range(0, 560, 40)
    ]
    path = tmp_path / "train.parquet"
    whole = pa.concat_tables(tables)
    pq.write_table(whole, path, compression="zstd", use_dictionary=False, write_batch_size=8)
    del tables, whole
    assert pq.ParquetFile(path).num_row_groups == 1
    read = ParquetReader(path, Container(str(path), "parquet", "image.bytes"), tmp_path).read
    assert all(read(Place(0, str(row), 0, 0)) == heads[row] + tail for row in range(0, 560, 40))
