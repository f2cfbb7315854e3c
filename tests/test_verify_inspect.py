"""`spectral verify` and `spectral inspect`: what they find and what they say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.format.beton import BetonReader
from tests.conftest import GREY, RAW, SHORTEST, SUB4, WHOLE, spectral, spectral_here


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A copy of the sub4 data set to damage."""
    return Path(shutil.copytree(data / SUB4, tmp_path / "copy"))


def test_an_undamaged_directory_is_found_clean(data: Path) -> None:
    for folder in (SUB4, RAW, WHOLE):
        done = spectral("verify", data / folder)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", ["train/shard_02.beton", "val/shard_00.beton", "samples.parquet", "manifest.json"]
)
def test_one_flipped_bit_is_found_and_named(copy: Path, name: str) -> None:
    """Anywhere in the file: header, tables, payload, end."""
    path = copy / name
    content = path.read_bytes()
    rng = np.random.default_rng(len(name))
    places = [0, len(content) - 1, *rng.integers(0, len(content), 3).tolist()]
    for at in places:
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        done = spectral_here("verify", copy)
        assert done.returncode == 1, at
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr
    path.write_bytes(content)
    assert spectral_here("verify", copy).returncode == 0


def test_two_hundred_flipped_bits_are_all_found(copy: Path) -> None:
    """One at a time, anywhere in betons, manifest and Parquet: 200 of 200 found and named."""
    rng = np.random.default_rng(200)
    files = [path for path in sorted(copy.rglob("*")) if path.stat().st_size and path.is_file()]
    assert {path.suffix for path in files} == {".beton", ".json", ".parquet"}
    for _ in range(200):
        path = files[int(rng.integers(len(files)))]
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        done = spectral_here("verify", copy)
        assert done.returncode == 1
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr
        path.write_bytes(content)
    assert spectral_here("verify", copy).returncode == 0


def test_quick_looks_at_sizes_and_structure_alone(copy: Path) -> None:
    path = copy / "train" / "shard_02.beton"
    content = path.read_bytes()
    payload = bytearray(content)
    payload[-9] ^= 1
    path.write_bytes(payload)
    assert spectral_here("verify", copy, "--quick").returncode == 0
    for damaged in (content[:-1], b"x" + content[1:]):
        path.write_bytes(damaged)
        done = spectral_here("verify", copy, "--quick")
        assert done.returncode == 1
        assert str(path) in done.stderr
    path.write_bytes(content)
    table = copy / "samples.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    assert str(table) in spectral_here("verify", copy, "--quick").stderr


def test_a_training_job_needs_the_manifest_and_its_own_shard_alone(copy: Path) -> None:
    for path in copy.rglob("*"):
        if path.is_file() and path.name not in ("manifest.json", "shard_02.beton"):
            path.unlink()
    done = spectral_here("verify", copy, "--shard", 2)
    assert done.returncode == 0, done.stderr
    assert "manifest and shard 2 are as they were written" in done.stdout
    assert spectral_here("verify", copy).returncode == 1
    assert "shards 0 to 3" in spectral_here("verify", copy, "--shard", 4).stderr
    path = copy / "calib" / "shard_02.beton"
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in spectral_here("verify", copy, "--shard", 2).stderr


def test_a_manifest_that_is_nested_without_end_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 300_000)
    for command in ("verify", "inspect", "merge"):
        done = spectral_here(command, tmp_path)
        assert done.returncode == 1
        assert "manifest.json is damaged" in done.stderr, done.stderr


def test_missing_and_truncated_files_are_named(copy: Path) -> None:
    (copy / "train" / "shard_01.beton").unlink()
    longer = copy / "val" / "shard_03.beton"
    longer.write_bytes(longer.read_bytes() + b"x")
    done = spectral_here("verify", copy)
    assert done.returncode == 1
    assert "2 damaged" in done.stderr
    assert "shard_01.beton: is missing" in done.stderr
    assert "shard_03.beton: has" in done.stderr


def test_inspect_says_which_files_are_missing(copy: Path) -> None:
    assert json.loads(spectral_here("inspect", copy, "--json").stdout)["problems"] == []
    (copy / "train" / "shard_01.beton").unlink()
    found = spectral_here("inspect", copy)
    assert found.returncode == 0
    assert "not as it was written" in found.stdout
    assert "shard_01.beton is missing" in found.stdout


def test_an_unfinished_directory_says_so(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    for command in ("verify", "inspect"):
        done = spectral_here(command, copy)
        assert done.returncode == 1
        assert "has no manifest.json" in done.stderr


def test_a_newer_schema_asks_for_an_update(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    done = spectral_here("inspect", copy)
    assert done.returncode == 1
    assert "schema 99" in done.stderr
    assert "update spectral" in done.stderr


def test_inspect_says_what_a_directory_holds(data: Path) -> None:
    found = json.loads(spectral_here("inspect", data / SUB4, "--json").stdout)
    assert found["psnr_db"] > 38
    assert found["plane_shape"] == [3, 16, 16]
    assert found["counts"]["val"]["written"] == 30
    assert len(found["planes"]) == 4
    text = spectral_here("inspect", data / SUB4).stdout
    assert "4 shards (dct2, phase layout), zstd" in text


def test_inspect_says_what_a_beton_holds(data: Path, tmp_path: Path) -> None:
    path = data / SUB4 / "val" / "shard_03.beton"
    found = json.loads(spectral_here("inspect", path, "--json").stdout)
    assert (found["samples"], found["codec"], found["plane"]) == (30, "zstd", 3)
    assert found["shape"] == [3, 16, 16]
    alone = tmp_path / "alone.beton"
    shutil.copy(path, alone)
    assert json.loads(spectral_here("inspect", alone, "--json").stdout)["samples"] == 30


@pytest.mark.parametrize("folder", [SUB4, RAW, GREY, WHOLE, SHORTEST])
def test_the_contact_sheet_is_a_picture(data: Path, tmp_path: Path, folder: str) -> None:
    done = spectral_here("inspect", data / folder, "--png", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10


def test_the_contact_sheet_does_without_the_source(
    copy: Path, source: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    text = (copy / "manifest.json").read_text()
    content = json.loads(text)
    assert content["source"] == str(source)
    from pipeline.format import manifest

    found = manifest.load(copy)
    manifest.Manifest(**{**vars(found), "source": str(moved / "gone")}).save(copy)
    done = spectral_here("inspect", copy, "--png", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    for path, message in ((tmp_path / "x", "truncated"), (tmp_path / "y", "no such file")):
        done = spectral_here("inspect", path)
        assert done.returncode == 1
        assert message in done.stderr
    done = spectral_here("inspect", tmp_path / "x", "--png", tmp_path / "sheet.png")
    assert done.returncode == 1


def test_a_sheet_is_a_png_of_a_prepared_directory(data: Path, tmp_path: Path) -> None:
    other = spectral_here("inspect", data / SUB4, "--png", tmp_path / "sheet.xyz")
    assert other.returncode == 2
    assert "does not end in .png" in other.stderr
    shard = data / SUB4 / "val" / "shard_00.beton"
    sheet = ("--png", tmp_path / "sheet.png")
    for command in (("inspect", shard, *sheet), ("inspect", shard, "--bad"), ("verify", shard)):
        done = spectral_here(*command)
        assert done.returncode == 1
        assert "is a file: name its prepared directory" in done.stderr


@pytest.mark.parametrize("content", [b'{"name": "an app"}', b"[]", b"\xff\xfe", b"", None])
def test_a_beton_is_described_whatever_the_manifest_two_folders_above_is(
    data: Path, tmp_path: Path, content: bytes | None
) -> None:
    """Of another program, damaged, a folder: it is not what was asked about."""
    beton = tmp_path / "train" / "shard_00.beton"
    beton.parent.mkdir()
    shutil.copy(data / SUB4 / "train" / "shard_00.beton", beton)
    path = tmp_path / "manifest.json"
    path.mkdir() if content is None else path.write_bytes(content)
    done = spectral_here("inspect", beton)
    assert done.returncode == 0, done.stderr
    assert "FFCV 2 beton" in done.stdout
    assert "manifest: not used: " in done.stdout
    assert json.loads(spectral_here("inspect", beton, "--json").stdout)["kind"] == "beton"


def test_inspect_names_what_is_damaged_where_it_looks_inside(copy: Path, tmp_path: Path) -> None:
    """Sizes, tables and footers are as they were, only what they lead to is not."""
    shard, table = copy / "train" / "shard_02.beton", copy / "samples.parquet"
    with BetonReader(shard) as reader:
        payloads = reader._pointers.tolist()
    for path, places, looks in (
        (shard, payloads, ("--png", tmp_path / "sheet.png")),
        (table, range(100, 1000), ("--bad",)),
    ):
        content = bytearray(path.read_bytes())
        for at in places:
            content[at] ^= 255
        path.write_bytes(content)
        done = spectral_here("inspect", copy, *looks)
        assert done.returncode == 1
        assert f"Error: {path}" in done.stderr, done.stderr
        assert "damaged" in done.stderr
        assert "Traceback" not in done.stderr
