"""Parquet as the hub of Hugging Face stores it, in small."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.preparation import Preparation
from pipeline.sources import recognise
from pipeline.sources.containers.parquet import ParquetReader
from pipeline.sources.index import Container, Place
from pipeline.sources.scan import Scan
from pipeline.sources.splits import assign
from tests.listing import listing, picture

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(
    path: Path,
    labels: list[int | None],
    *,
    image: str = "image",
    label: str = "label",
    plain: bool = False,
    names: list[str] | None = None,
    per_group: int = 3,
) -> list[bytes]:
    """Row groups of three. Paths are what nobody should follow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [picture() for _ in labels]
    images = pa.array(data if plain else [{"bytes": d, "path": "../../x"} for d in data],
                      pa.binary() if plain else STRUCT)  # fmt: skip
    table = pa.table(
        {"other": [0] * len(labels), image: images, label: pa.array(labels, pa.int64())}
    )
    if names:
        info = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()})
    pq.write_table(table, path, row_group_size=per_group)
    return data


@pytest.mark.parametrize("folder", ["data", "", "plain_text"])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    "columns", [("image", "label"), ("img", "fine_label"), ("image", "labels")]
)
def test_rows_of_several_groups_and_files_are_found(
    folder: str, plain: bool, columns: tuple[str, str], tmp_path: Path
) -> None:
    """File 10 comes after file 2; class names are in the schema."""
    root = tmp_path / "a"
    how: dict[str, Any] = {"image": columns[0], "label": columns[1], "plain": plain}
    expected = {}
    for split, stem, labels in (
        ("train", "train-2-of-11-a1b2", [2, 0, 1, 2, 2, 0, 1]),
        ("train", "train-10-of-11-9f", [1, 1]),
        ("train", "train-0-of-11", [0]),
        ("val", "validation-00000-of-00001", [1, 2, 0, 0]),
    ):
        data = write(root / folder / f"{stem}.parquet", labels, names=["cat", "dog", "cat"], **how)
        for row, label in enumerate(labels):
            expected[f"{split}/{label}/{stem}/{row}"] = (label, data[row])
    found = listing(root, tmp_path / "index")
    assert found.layout == "parquet"
    assert {key: (row.label, row.data) for key, row in found.rows.items()} == expected
    assert found.summary.classes == ["0", "1", "2"]
    assert found.summary.names == ["cat", "dog", "cat"]
    assert found.labels("train") == [0, 2, 0, 1, 2, 2, 0, 1, 1, 1], "in the order of the files"
    assert [row.rank for row in found.rows.values() if row.split == "train" and row.label == 1] == [
        0, 1, 2, 3,
    ]  # fmt: skip
    assert found.rows["train/1/train-2-of-11-a1b2/6"].member == "6"
    assert (folder or ".") in found.summary.origin


def test_only_one_column_and_one_row_group_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a" / "train.parquet", [0] * 8)
    asked: list[tuple[int, list[str]]] = []
    labels, images = pq.ParquetFile.read_row_group, pq.ParquetFile.iter_batches

    def spy_labels(self: Any, group: int, columns: list[str], **more: Any) -> Any:
        asked.append((group, columns))
        return labels(self, group, columns, **more)

    def spy_images(self: Any, rows: int, groups: list[int], columns: list[str], **more: Any) -> Any:
        asked.extend((group, columns) for group in groups)
        return images(self, rows, groups, columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy_labels)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy_images)
    listing(tmp_path / "a", tmp_path / "index")
    read = [(n, [c]) for c in ("label", "image.bytes") for n in range(3)]
    assert asked == [(0, ["image.bytes"]), *read]  # first of all, whether there are any bytes


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    """pyarrow's default writer makes one row group of a million rows: here 80 MB in one."""
    path, size = tmp_path / "train.parquet", 40_000
    noise = np.random.default_rng(0).bytes(size)
    images = [{"bytes": bytes([i % 256]) + noise[1:], "path": None} for i in range(2000)]
    table = pa.table({"image": images, "label": [0] * 2000})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_batch_size=8)
    del table
    before = pa.total_allocated_bytes()
    read = ParquetReader(path, Container(str(path), "parquet", "image.bytes"), tmp_path).read
    for row in (0, 1, 700, 1999, 3):
        assert read(Place(0, str(row), 0, 0)) == images[row]["bytes"]
        assert pa.total_allocated_bytes() - before < 20e6


def test_without_names_the_labels_themselves_are_the_classes(tmp_path: Path) -> None:
    write(tmp_path / "a" / "train.parquet", [0, 4, 11])
    write(tmp_path / "a" / "valid.parquet", [2])
    found = listing(tmp_path / "a", tmp_path / "index")
    assert found.summary.classes == [str(label) for label in range(12)]
    assert found.summary.names is None
    assert (found.labels("train"), found.labels("val")) == ([0, 4, 11], [2])


@pytest.mark.parametrize(
    "metadata",
    [
        b"no JSON",
        b"[]",
        b"[" * 300_000,
        b'{"info": {"features": {"label": {}}}}',
        b'{"info": {"features": {"label": {"names": {"0": "a", "one": "b"}}}}}',
        b'{"info": {"features": {"label": {"names": {"0": "a", "1_0": "b"}}}}}',
        b'{"info": {"features": {"label": {"names": {"0": "a", "2": "b"}}}}}',
    ],
    ids=["none", "list", "deep", "label", "words", "no number", "a gap"],
)
def test_metadata_of_another_kind_is_no_error(metadata: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a" / "train.parquet"
    write(path, [0, 1])
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"huggingface": metadata}), path)
    assert listing(tmp_path / "a", tmp_path / "index").summary.names is None


@pytest.mark.parametrize("unlabelled", [-1, None])
def test_a_test_split_without_labels_is_left_out_and_said(
    unlabelled: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a" / "data" / "train-00000-of-00001.parquet", [0, 1])
    write(tmp_path / "a" / "data" / "test-00000-of-00001.parquet", [unlabelled] * 5)
    found = listing(tmp_path / "a", tmp_path / "index")
    assert len(found.rows) == 2
    assert "the test split has no labels: left out" in caplog.text


@pytest.mark.parametrize("with_val", [True, False])
def test_a_test_split_with_labels_is_val_where_there_is_none(
    with_val: bool, tmp_path: Path
) -> None:
    write(tmp_path / "a" / "train.parquet", [0, 1])
    write(tmp_path / "a" / "test.parquet", [1, 0, 1])
    if with_val:
        write(tmp_path / "a" / "val.parquet", [0])
    found = listing(tmp_path / "a", tmp_path / "index")
    assert found.labels("test" if with_val else "val") == [1, 0, 1]
    assert found.labels("val" if with_val else "test") == [0] * with_val


def test_missing_files_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (0, 2):
        write(tmp_path / "a" / f"train-0000{number}-of-00005.parquet", [0, 1])
    assert len(listing(tmp_path / "a", tmp_path / "index").rows) == 4
    assert "3 of 5 files of train are missing: 00001, 00003, 00004" in caplog.text


def test_a_gap_between_numbered_files_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (0, 1, 3):
        write(tmp_path / "a" / f"Train-{number}.parquet", [0, 1])
    assert len(listing(tmp_path / "a", tmp_path / "index").rows) == 6
    assert "files are missing: Train-2.parquet" in caplog.text


def test_files_of_no_split_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train-0", "extra-0"):
        write(tmp_path / "a" / f"{name}.parquet", [0, 1])
    assert len(listing(tmp_path / "a", tmp_path / "index").rows) == 2
    assert "left out, as no split is in the name: extra-0.parquet" in caplog.text


@pytest.mark.parametrize("plain", [True, False])
def test_a_row_without_an_image_has_no_bytes(plain: bool, tmp_path: Path) -> None:
    """So that it is found by content, as an empty file is."""
    values = [b"x", None, b"y"]
    images = values if plain else [None, {"bytes": None, "path": "a"}, {"bytes": b"y", "path": "b"}]
    table = {"image": pa.array(images, pa.binary() if plain else STRUCT), "label": [0, 0, 0]}
    (tmp_path / "a").mkdir()
    pq.write_table(pa.table(table), tmp_path / "a" / "train.parquet")
    found = listing(tmp_path / "a", tmp_path / "index")
    assert [row.data for row in found.rows.values()] == [b"x" if plain else b"", b"", b"y"]


@pytest.mark.parametrize("label", [-1, None, 3, 10**12])
@pytest.mark.parametrize("named", [True, False])
def test_a_label_out_of_range_is_named(label: int | None, named: bool, tmp_path: Path) -> None:
    write(tmp_path / "a" / "train.parquet", [0, 1, 2, 0, label], names=list("abc") * named)
    if label == 3 and not named:
        assert len(listing(tmp_path / "a", tmp_path / "index").summary.classes) == 4
        return
    with pytest.raises(
        SourceError, match=rf"train.parquet: row 4 has label {label}, expected 0 to"
    ):
        listing(tmp_path / "a", tmp_path / "index")


@pytest.mark.parametrize(
    "columns",
    [
        {"image": pa.array([b"x"])},
        {"label": pa.array([0])},
        {"image": pa.array(["x"]), "label": pa.array([0])},
        {"image": pa.array([{"path": b"x"}]), "label": pa.array([0])},
        {"image": pa.array([b"x"]), "label": pa.array(["cat"])},
    ],
)
def test_columns_that_are_missing_or_of_another_type_are_listed(
    columns: dict[str, Any], tmp_path: Path
) -> None:
    table = pa.table({"width": [1], **columns})
    (tmp_path / "a").mkdir()
    pq.write_table(table, tmp_path / "a" / "train.parquet")
    listed = ", ".join(f"{field.name} ({field.type})" for field in table.schema)
    with pytest.raises(SourceError) as caught:
        listing(tmp_path / "a", tmp_path / "index")
    assert f"train.parquet has the columns {listed}; expected image or img (bin" in str(
        caught.value
    )


def test_classes_that_are_left_out_leave_the_others_in_the_order_of_their_numbers(
    tmp_path: Path,
) -> None:
    """Keys are numbers: sorted as text, 10 would come before 2."""
    labels = [label for label in range(12) for _ in range(501 if label != 1 else 500)]
    (tmp_path / "a").mkdir()
    table = {"image": [b"x"] * len(labels), "label": labels}
    pq.write_table(pa.table(table), tmp_path / "a" / "train.parquet")
    scan = Scan(tmp_path, tmp_path / "a", lambda count, text: None)
    recognise(tmp_path / "a").scan(scan)
    prep = SimpleNamespace(
        dataset="imagenet21k", test_split=False, limit=None, all_classes=False, calib=0
    )
    summary = assign(scan, cast(Preparation, prep), tmp_path).summary
    assert summary.classes == [str(label) for label in range(12) if label != 1]
    assert summary.counts == {"train": 451 * 11, "calib": 0, "val": 50 * 11, "test": 0}


def test_a_source_without_train_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "validation.parquet", [0])
    with pytest.raises(SourceError, match=r"has no train-\*.parquet"):
        listing(tmp_path / "a", tmp_path / "index")


def test_two_folders_of_parquet_are_refused(tmp_path: Path) -> None:
    for name in ("cifar10", "cifar100"):
        write(tmp_path / "a" / name / "train.parquet", [0])
    with pytest.raises(SourceError, match=r"cifar100: name one of them"):
        listing(tmp_path / "a", tmp_path / "index")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_file_that_is_not_whole_is_named(split: str, tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write(tmp_path / "a" / f"{name}.parquet", [0, 1, 2])
    path = tmp_path / "a" / f"{split}.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match=rf"{split}.parquet is damaged or not whole"):
        listing(tmp_path / "a", tmp_path / "index")


def test_damage_within_a_row_group_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write(path, [0] * 6)
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    read = ParquetReader(path, Container("train.parquet", "parquet", "image.bytes"), tmp_path).read
    assert read(Place(0, "0", 0, 0))
    with pytest.raises(SourceError, match=r"train.parquet is damaged or not whole"):
        read(Place(0, "3", 0, 0))


def test_errors_of_the_machine_are_not_taken_for_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ParquetReader(tmp_path / "gone.parquet", Container("", "parquet", "image"), tmp_path)
