"""The file format: FFCV's own dtypes, the stock Loader, pages, digests, damage."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DamagedError
from pipeline.format import beton
from pipeline.format.beton import PAGE, PIECE, BetonReader, digest, image_field
from pipeline.format.beton_writer import BetonWriter, Mark, Written, publish
from pipeline.format.codec import decode_plane
from pipeline.preparation import Preparation, preparation
from tests.conftest import GREY, RAW, ROOT, SUB4


def test_dtypes_are_ffcvs() -> None:
    """Ours are copies, since importing ffcv would load torch; they must not drift."""
    from ffcv import types
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.fields.ndarray import NDArrayArgsType

    assert types.HeaderType == beton.HEADER
    assert types.FieldDescType == beton.FIELD
    assert types.ALLOC_TABLE_TYPE == beton.ALLOCATION
    assert types.CURRENT_VERSION == beton.VERSION
    assert NDArrayArgsType == beton.NDARRAY_ARGUMENTS
    assert RGBImageField().metadata_type == beton.RGB_IMAGE
    assert types.TYPE_ID_HANDLER[beton.TYPE_RGB_IMAGE] is RGBImageField
    assert types.TYPE_ID_HANDLER[beton.TYPE_NDARRAY] is NDArrayField
    assert types.TYPE_ID_HANDLER[beton.TYPE_INT] is IntField
    assert types.TYPE_ID_HANDLER[beton.TYPE_CUSTOM] is None
    rgb = types.get_metadata_type([RGBImageField(), IntField()])
    assert rgb == image_field(preparation("any", 4, size=8, codec="raw")).row


def write(path: Path, prep: Preparation, payloads: list[bytes], capacity: int = 0) -> Written:
    """A file of `payloads`, labels 0, 1, 2, …, appended in uneven pieces."""
    writer = BetonWriter(path, image_field(prep), capacity or len(payloads))
    append(writer, prep, payloads)
    return finished(writer)


def finished(writer: BetonWriter) -> Written:
    written = writer.finish()
    writer.close()
    publish(writer.path)
    return written


def append(writer: BetonWriter, prep: Preparation, payloads: list[bytes], first: int = 0) -> None:
    for start in range(0, len(payloads), 7):
        part = payloads[start : start + 7]
        sizes = np.array([len(p) for p in part], np.uint32)
        shapes = np.tile(np.array(prep.plane_shape[1:], np.int32), (len(part), 1))
        labels = first + start + np.arange(len(part))
        writer.append(memoryview(b"".join(part)), sizes, labels, shapes)


JPEG = preparation("any", 1, size=8)
ZSTD = preparation("any", 4, size=8)
RAW_GREY = preparation("any", 4, size=2 * 1448, channels=1, codec="raw")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    payloads = [rng.bytes(int(n)) for n in rng.integers(0, 3000, 100)]
    written = write(tmp_path / "a.beton", ZSTD, payloads)
    with BetonReader(tmp_path / "a.beton") as reader:
        assert reader.samples == written.samples == 100
        assert [reader.payload(i) for i in range(100)] == payloads
        assert reader.labels.tolist() == list(range(100))
        assert reader.shape(0) == (3, 4, 4)
    assert written.payload_bytes == sum(map(len, payloads))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "sizes",
    [[PAGE], [PAGE - 100, 200, PAGE, 1], [PAGE // 3] * 11, [1, PAGE, PAGE, 5], [], [0, 0]],
)
def test_no_sample_straddles_a_page_and_the_digest_is_the_files(
    tmp_path: Path, sizes: list[int]
) -> None:
    """The digest that the writer keeps on the way is the one of the finished file."""
    rng = np.random.default_rng(1)
    payloads = [rng.bytes(size) for size in sizes]
    written = write(tmp_path / "a.beton", ZSTD, payloads, capacity=len(sizes) + 3)
    assert written.digest == digest(tmp_path / "a.beton")
    assert written.size == (tmp_path / "a.beton").stat().st_size
    with BetonReader(tmp_path / "a.beton") as reader:
        for i, payload in enumerate(payloads):
            pointer, size = int(reader.rows["f0"]["ptr"][i]), len(payload)
            assert size == 0 or pointer // PAGE == (pointer + size - 1) // PAGE
            assert reader.payload(i) == payload


def test_bytes_depend_on_the_samples_alone(tmp_path: Path) -> None:
    """Not on how they were cut into pieces."""
    rng = np.random.default_rng(2)
    payloads = [rng.bytes(int(n)) for n in rng.integers(1, PAGE // 5, 40)]
    write(tmp_path / "a.beton", RAW_GREY, payloads)
    writer = BetonWriter(tmp_path / "b.beton", image_field(RAW_GREY), len(payloads))
    for i, payload in enumerate(payloads):
        shape = np.array([[1448, 1448]], np.int32)
        writer.append(memoryview(payload), np.array([len(payload)]), np.array([i]), shape)
    finished(writer)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()


@pytest.mark.parametrize("prep", [ZSTD, RAW_GREY], ids=["zstd", "raw"])
@pytest.mark.parametrize("cut", [1, 13, 24])
def test_a_writer_taken_up_at_its_mark_writes_the_same(
    tmp_path: Path, prep: Preparation, cut: int
) -> None:
    """Whatever it had written behind the mark, in samples and in tables, before it was killed."""
    rng = np.random.default_rng(3)
    payloads = [rng.bytes(int(n)) for n in rng.integers(1, PAGE // 2, 25)]
    whole = write(tmp_path / "a.beton", prep, payloads, capacity=30)
    path = tmp_path / "b.beton"
    first = BetonWriter(path, image_field(prep), 30)
    append(first, prep, payloads[: cut // 2])
    earlier = first.mark()
    append(first, prep, payloads[cut // 2 : cut], cut // 2)
    mark = first.mark()
    pieces = zip(earlier.digests, mark.digests, strict=True)
    mark = replace(mark, digests=tuple(one + more for one, more in pieces))
    append(first, prep, [rng.bytes(999)] * (30 - cut), 500)
    first.mark()
    first.close()
    again = BetonWriter(path, image_field(prep), 30, mark)
    append(again, prep, payloads[cut:], cut)
    assert finished(again) == whole
    assert path.read_bytes() == (tmp_path / "a.beton").read_bytes()
    assert whole.digest == digest(path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.beton", "b.beton"]


def test_a_partial_file_that_lost_bytes_is_refused(tmp_path: Path) -> None:
    writer = BetonWriter(tmp_path / "a.beton", image_field(ZSTD), 5)
    append(writer, ZSTD, [b"x" * 50] * 5)
    mark = writer.mark()
    writer.close()
    os.truncate(tmp_path / "a.beton.partial", mark.end - 1)
    with pytest.raises(DamagedError, match="--overwrite"):
        BetonWriter(tmp_path / "a.beton", image_field(ZSTD), 5, mark)


def test_a_partial_file_that_ends_with_a_piece_and_lost_bytes_is_refused(tmp_path: Path) -> None:
    """Of such a one nothing is read again."""
    field, path = image_field(ZSTD), tmp_path / "a.beton.partial"
    writer = BetonWriter(tmp_path / "a.beton", field, 2)
    append(writer, ZSTD, [b"x"])
    first = writer.mark().end
    append(writer, ZSTD, [b"x" * (PIECE - first % PIECE)], 1)
    mark = writer.mark()
    writer.close()
    assert mark.end % PIECE == 0
    os.truncate(path, mark.end - 1)
    with pytest.raises(DamagedError, match="--overwrite"):
        BetonWriter(tmp_path / "a.beton", field, 2, mark)


def read_so_far() -> int:
    """Bytes that this process has read."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mark, Written]:
    """A partial file with megabytes of rows, where it was left; and what it is to become."""
    count = 100_000
    payloads = [b"0123456789" * 10] * count
    folder = tmp_path_factory.mktemp("long")
    whole = write(folder / "whole.beton", JPEG, payloads)
    writer = BetonWriter(folder / "a.beton", image_field(JPEG), count)
    append(writer, JPEG, payloads[:-1])
    mark = writer.mark()
    append(writer, JPEG, payloads[-1:], count - 1)
    writer.close()
    return folder, mark, whole


def test_going_on_reads_a_little_however_much_there_is(
    tmp_path: Path, long_run: tuple[Path, Mark, Written]
) -> None:
    """Of rows, payloads and sizes the last, partial piece; at the end the pieces that two share."""
    folder, mark, whole = long_run
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = read_so_far()
    writer = BetonWriter(tmp_path / "a.beton", image_field(JPEG), 100_000, mark)
    assert read_so_far() - before < 3 * PIECE + 10_000
    append(writer, JPEG, [b"0123456789" * 10], 99_999)
    assert finished(writer) == whole
    assert digest(tmp_path / "a.beton") == whole.digest
    assert (tmp_path / "a.beton").stat().st_size > 14 * PIECE


@pytest.mark.parametrize(
    ("name", "at", "piece"),
    [("a.beton", 5000, 0), ("a.beton", 3_000_000, 2), ("a.beton.sizes", 9, 0)],
)
def test_damage_to_what_is_read_again_at_the_end_is_found_there(
    tmp_path: Path, long_run: tuple[Path, Mark, Written], name: str, at: int, piece: int
) -> None:
    """Else its digest would be taken of the damage. What is not read again `verify` finds."""
    folder, mark, _ = long_run
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with (tmp_path / f"{name}.partial").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    assert at // PIECE == piece
    writer = BetonWriter(tmp_path / "a.beton", image_field(JPEG), 100_000, mark)
    with pytest.raises(DamagedError, match=f"{name}.partial is not what was written"):
        writer.finish()
    writer.close()


@pytest.mark.parametrize("keep", [0, 5, 24, 1500, 2110, 2500, 4000])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.beton"
    write(path, ZSTD, [b"x" * 50] * 40)
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    with pytest.raises(DamagedError, match=r"a\.beton"):
        BetonReader(path)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    path.write_bytes(b"not a beton at all" * 400)
    with pytest.raises(DamagedError, match="no FFCV file"):
        BetonReader(path)


STOCK = """
import os, sys
sys.path = [p for p in sys.path if not os.path.exists(os.path.join(p, "pipeline"))]
import numpy as np
from ffcv.loader import Loader, OrderOption
for number, path in enumerate(sys.argv[1:]):
    images = []
    for os_cache in (True, False):
        for batch, labels in Loader(path, batch_size=16, num_workers=2, drop_last=False,
                                    os_cache=os_cache, order=OrderOption.SEQUENTIAL):
            images.append(batch.numpy().copy())
    np.save(f"{number}.npy", np.concatenate(images))
print(not any(m == "pipeline" or m.startswith("trainer") for m in sys.modules))
"""


def test_raw_shards_open_with_ffcv_alone(tmp_path: Path, data: Path) -> None:
    """A process of its own, none of our code on its path, either cache; int8 + 128, HWC."""
    paths = [data / folder / "train" / "shard_01.beton" for folder in (RAW, GREY)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", STOCK, *paths],
        cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("True\n")
    for number, (path, channels) in enumerate(zip(paths, (3, 1), strict=True)):
        images = np.load(tmp_path / f"{number}.npy")
        with BetonReader(path) as reader:
            for i, image in enumerate(images):
                payload = reader.payload(i % reader.samples)
                plane = decode_plane(payload, "raw", (channels, 16, 16))
                assert (image == (plane.transpose(1, 2, 0).astype(int) + 128)).all()
            assert len(images) == 2 * reader.samples


STOCK_ZSTD = """
import sys
import numpy as np
from ffcv.loader import Loader, OrderOption
from trainer.data.field import PlaneField
for order in (OrderOption.SEQUENTIAL, OrderOption.RANDOM):
    images = [b.numpy().copy() for b, _ in Loader(
        sys.argv[1], batch_size=16, num_workers=2, drop_last=False, os_cache=True, order=order,
        seed=3, custom_fields={"image": PlaneField})]
    np.save(f"{sys.argv[2]}/{order.name}.npy", np.concatenate(images))
"""


def test_a_zstd_shard_opens_with_the_stock_loader_and_our_field(tmp_path: Path, data: Path) -> None:
    path = data / SUB4 / "train" / "shard_02.beton"
    command = [sys.executable, "-c", STOCK_ZSTD, path, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ordered, mixed = (np.load(tmp_path / f"{name}.npy") for name in ("SEQUENTIAL", "RANDOM"))
    with BetonReader(path) as reader:
        planes = [
            decode_plane(reader.payload(i), "zstd", (3, 16, 16)) for i in range(reader.samples)
        ]
    assert (ordered == np.stack(planes)).all()
    assert (mixed != ordered).any()
    assert {plane.tobytes() for plane in mixed} == {plane.tobytes() for plane in planes}
