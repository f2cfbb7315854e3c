"""`spectral verify` of files whose digests are right: what they say against one another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.format import manifest
from pipeline.format.beton import BetonReader, digest
from tests.conftest import GREY, RAW, SHORTEST, SUB4, WHOLE, spectral_here


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A copy of the sub4 data set to forge."""
    return Path(shutil.copytree(data / SUB4, tmp_path / "copy"))


def forge(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest, and give it the digest of what it says then."""
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    content["digest"] = manifest._digest({**content, "digest": ""})
    path.write_text(manifest._dump(content))


def forge_file(directory: Path, name: str) -> None:
    """Have the manifest say what a file is now."""
    entry = {"size": (directory / name).stat().st_size, "digest": digest(directory / name)}
    forge(directory, lambda m: m["files"].update({name: entry}))


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "counts of train do not add up": lambda m: m["counts"]["train"].update(indexed=1),
    "counts of val are no": lambda m: m["counts"]["val"].update(written=-1, indexed=-1),
    "counts of val are no indexed": lambda m: m["counts"]["val"].pop("written"),
    "counts are of calib, test, train, not": lambda m: m["counts"].pop("val"),
    "its planes are not 0 to 3": lambda m: m.update(planes=[]),
    "its planes are not 0 to 3,": lambda m: m["planes"].reverse(),
    "plane 2 is none of 3 channels": lambda m: m["planes"][2]["offset"].pop(),
    "plane 1 is none of 3 channels": lambda m: m["planes"][1].update(step=0),
    "matrix is no orthonormal matrix": lambda m: m["matrix"][1].__setitem__(0, 9),
    "matrix is no orthonormal matrix of 4": lambda m: m["matrix"].pop(),
    "colour is no orthonormal matrix of 3": lambda m: m["colour"].append([1, 2]),
    "files lack, or should not have, val/shard_03": lambda m: m["files"].pop("val/shard_03.beton"),
    "files lack, or should not have, ../x": lambda m: m["files"].update({"../x": {}}),
    "size and digest of samples": lambda m: m["files"]["samples.parquet"].update(size="7"),
    "3 classes with 2 names": lambda m: m.update(class_names=["a", "b"]),
    "or two classes of one name": lambda m: m.update(classes=["a", "a", "b"]),
    "more than were written": lambda m: m.update(psnr_images=10_000),
    "no manifest: counts cannot": lambda m: m.update(counts="many"),
    "no manifest: planes cannot": lambda m: m["planes"][0].update(mean=[1, float("nan"), 1]),
    "no manifest: psnr_db cannot": lambda m: m.update(psnr_db=True),
    "no manifest: psnr_images cannot": lambda m: m.update(psnr_images=10**400),
    "no manifest: preparation cannot": lambda m: m["preparation"].update(size="32"),
    "no manifest: classes, files cannot": lambda m: m.update(classes={}, files=[]),
    "its preparation cannot be: --splits 5": lambda m: m["preparation"].update(splits=5),
    "lacks or adds fields": lambda m: m.update(more=1),
    "lacks or adds fields: ": lambda m: m.pop("colour"),
}


@pytest.mark.parametrize("said", EDITS)
def test_a_manifest_that_contradicts_itself_is_refused_by_all(copy: Path, said: str) -> None:
    forge(copy, EDITS[said])
    for command in (("verify",), ("verify", "--quick"), ("verify", "--shard", 1), ("inspect",)):
        done = spectral_here(*command, copy)
        assert done.returncode == 1
        assert said in done.stderr, done.stderr
        assert str(copy / "manifest.json") in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("folder", [SUB4, RAW, GREY, WHOLE, SHORTEST])
def test_what_was_written_contradicts_nothing(data: Path, folder: str) -> None:
    for options in ((), ("--quick",)):
        done = spectral_here("verify", data / folder, *options)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_labels_of_shards_are_compared_with_the_table(copy: Path, options: tuple[str]) -> None:
    with BetonReader(copy / "val" / "shard_02.beton") as reader:
        at = reader._descriptions.nbytes + 24 + 7 * reader.field.row.itemsize
        at += reader.field.row.fields["f1"][1]
        label = int(reader.labels[7])
    with (copy / "val" / "shard_02.beton").open("r+b") as file:
        file.seek(at)
        file.write(np.int64((label + 1) % 3).tobytes())
    forge_file(copy, "val/shard_02.beton")
    done = spectral_here("verify", copy, *options)
    assert done.returncode == 1
    assert f"val/shard_02.beton: says label {(label + 1) % 3} of sample 7, samples" in done.stderr
    assert "1 damaged" in done.stderr


def changed(copy: Path, change: Callable[[pa.Table], pa.Table]) -> str:
    """What is said of a directory whose table was edited."""
    table = pq.read_table(copy / "samples.parquet")
    pq.write_table(change(table), copy / "samples.parquet")
    forge_file(copy, "samples.parquet")
    done = spectral_here("verify", copy)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.types[at]))


def test_a_table_of_other_labels_is_found(copy: Path) -> None:
    rotated = lambda table: with_column(table, "label", (table["label"].to_numpy() + 1) % 3)
    assert "12 damaged" in changed(copy, rotated)  # all shards, of train, calib and val


def test_a_table_of_labels_beyond_the_classes_is_found(copy: Path) -> None:
    said = changed(copy, lambda table: with_column(table, "label", table["label"].to_numpy() + 1))
    assert "samples.parquet: has labels in train that none of the 3 classes has" in said


def test_a_table_of_other_rows_is_found(copy: Path) -> None:
    said = changed(copy, lambda table: table.slice(1))
    assert "samples.parquet: has" in said
    assert "written and 0 quarantined samples in" in said


def test_shards_of_another_preparation_or_split_are_found(copy: Path, data: Path) -> None:
    """Whole files, of other directories: as copied by mistake."""
    shutil.copy(data / RAW / "val" / "shard_01.beton", copy / "val")
    shutil.copy(copy / "val" / "shard_00.beton", copy / "calib")
    for name in ("val/shard_01.beton", "calib/shard_00.beton"):
        forge_file(copy, name)
    for options in ((), ("--quick",)):
        said = spectral_here("verify", copy, *options).stderr
        assert "2 damaged" in said
        assert "val/shard_01.beton: holds other images than" in said
        assert "calib/shard_00.beton: holds 30 samples, manifest.json says" in said
