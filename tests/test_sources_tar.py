"""Archives read in place: every image that is listed has the bytes of the file that was packed."""

import gzip
import io
import logging
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.errors import SourceError
from pipeline.sources import recognise
from pipeline.sources.containers.tar import iter_members
from pipeline.sources.index import Place, Summary
from pipeline.sources.reading import Feeder, Reader
from pipeline.sources.scan import Scan
from tests.conftest import ROOT, photograph

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SAMPLE = ROOT.parent / "shared" / "data" / "imagenet-sample"
Files = dict[str, bytes]


@dataclass
class Listed:
    """What a scan gave: image bytes, labels and ranks by id, in the order of the list."""

    layout: str
    summary: Summary
    images: Files
    labels: dict[str, int]
    ranks: dict[str, int]


def jpegs(count: int, form: str = "JPEG") -> list[bytes]:
    """Different small images; real photographs where the sample is at hand."""
    real = sorted(SAMPLE.glob("*/*"))[:3] if form == "JPEG" else []
    rng, found = np.random.default_rng(count), [path.read_bytes() for path in real][:count]
    while len(found) < count:
        file = io.BytesIO()
        photograph(rng, 24 + len(found), 20).save(file, form)
        found.append(file.getvalue())
    return found


def packed(files: Files | Iterable[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar; names that end in / are folders."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in files.items() if isinstance(files, dict) else files:
            entry = tarfile.TarInfo(name.rstrip("/"))
            entry.size = len(content)
            entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def listed(root: Path, folder: Path) -> Listed:
    """Recognise, scan, read all back."""
    folder.mkdir(exist_ok=True)
    source = recognise(root)
    scan = Scan(folder, root, lambda count, note: None)
    source.scan(scan)
    reader = Reader(root, scan.summary.containers)
    feeder = Feeder(root, scan.summary.containers, folder)
    found = Listed(source.layout, scan.summary, {}, {}, {})
    labels = scan.relabel()
    for batch in scan.batches():
        for row in batch.to_pylist():
            place = Place(row["file"], row["member"], row["offset"], row["size"])
            data = feeder.read(place) if feeder.feeds(place) else reader.read(place)
            assert row["id"] not in found.images
            found.images[row["id"]] = data
            found.labels[row["id"]] = labels[row["label"]]
            found.ranks[row["id"]] = row["rank"]
    return found


def refused(root: Path, folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        listed(root, folder)
    return str(caught.value)


# --- ILSVRC -------------------------------------------------------------------------------------

# id, wnid, words: the ids are in another order than the wnids, and 1001 is a group
SYNSETS = [(1, "n03", "tench"), (2, "n01", "goldfish"), (3, "n02", "hen"), (1001, "n00", "animal")]
WNIDS = {number: wnid for number, wnid, _ in SYNSETS}
TRUTH = [2, 3, 1, 2]


def devkit(synsets: list[tuple[int, str, str]] = SYNSETS, truth: list[int] = TRUTH) -> bytes:
    """As image-net.org packs it, as far as it is read."""
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(synsets, dtype=kinds).reshape(-1, 1)})
    lines = "".join(f"{number}\n" for number in truth).encode()
    folder = "ILSVRC2012_devkit_t12/"
    return gzip.compress(
        packed(
            {
                f"{folder}readme.txt": b"",
                f"{folder}data/meta.mat": file.getvalue(),
                f"{folder}data/ILSVRC2012_validation_ground_truth.txt": lines,
            }
        )
    )


def write_ilsvrc(root: Path) -> tuple[Path, Files]:
    """The three archives; the image bytes by id."""
    images, expected, outer = jpegs(10), {}, []
    for number, wnid in enumerate(("n02", "n03", "n01")):
        names = [f"{wnid}_{i}.JPEG" for i in (10, 2)]
        inner = dict(zip(names, images[2 * number :], strict=False))
        expected |= {f"train/{wnid}/{name}": data for name, data in inner.items()}
        outer.append((f"{wnid}.tar", packed(inner)))
    val = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": images[6 + i] for i in (2, 0, 3, 1)}
    for name, data in val.items():
        number = TRUTH[int(name[-7:-5]) - 1]
        expected[f"val/{WNIDS[number]}/{name}"] = data
    root.mkdir()
    (root / TRAIN).write_bytes(packed(outer))
    (root / VAL).write_bytes(packed(val))
    (root / DEVKIT).write_bytes(devkit())
    return root, expected


@pytest.fixture
def ilsvrc(tmp_path: Path) -> tuple[Path, Files]:
    return write_ilsvrc(tmp_path / "ilsvrc")


def test_ilsvrc_ids_are_not_taken_for_labels(ilsvrc: tuple[Path, Files], tmp_path: Path) -> None:
    root, expected = ilsvrc
    found = listed(root, tmp_path / "scan")
    assert found.layout == "ilsvrc-tars"
    assert found.images == expected
    assert found.summary.classes == ["n01", "n02", "n03"]
    assert found.summary.names == ["goldfish", "hen", "tench"]
    for image, label in found.labels.items():
        assert found.summary.classes[label] == image.split("/")[1]
    # the second line of the ground truth says 3, which is n02
    assert "val/n02/ILSVRC2012_val_00000002.JPEG" in found.images
    assert set(found.summary.origin) == {".", TRAIN, VAL}


def test_ilsvrc_without_val_is_all_train_and_says_so(
    ilsvrc: tuple[Path, Files], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, expected = ilsvrc
    (root / VAL).unlink()
    (root / DEVKIT).unlink()
    with caplog.at_level(logging.WARNING):
        found = listed(root, tmp_path / "scan")
    assert set(found.images) == {image for image in expected if image.startswith("train/")}
    assert f"has no {VAL}" in caplog.text


def test_the_train_tar_alone_may_be_named(ilsvrc: tuple[Path, Files], tmp_path: Path) -> None:
    root, expected = ilsvrc
    found = listed(root / TRAIN, tmp_path / "scan")
    assert found.layout == "whole-tar"
    assert found.images == {i: data for i, data in expected.items() if i.startswith("train/")}


@pytest.mark.parametrize(("missing", "named"), [(DEVKIT, DEVKIT), (TRAIN, TRAIN)])
def test_ilsvrc_says_which_file_is_missing(
    ilsvrc: tuple[Path, Files], tmp_path: Path, missing: str, named: str
) -> None:
    root, _ = ilsvrc
    (root / missing).unlink()
    message = refused(root, tmp_path / "scan")
    assert f"no {named}" in message
    assert "image-net.org" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (devkit(truth=[1, 2, 3]), "has 4 images"),
        (devkit(truth=[1, 2, 3, 1001]), "class 1001"),
        (devkit()[:-40], "download it again"),
        (gzip.compress(packed({"data/meta.mat": b"no matrix"})), "cannot be read"),
        (gzip.compress(packed({"readme": b""})), "lacks meta.mat"),
    ],
    ids=["short truth", "unknown class", "cut short", "no matrix", "no meta.mat"],
)
def test_a_devkit_that_does_not_fit(
    ilsvrc: tuple[Path, Files], tmp_path: Path, content: bytes, expected: str
) -> None:
    root, _ = ilsvrc
    (root / DEVKIT).write_bytes(content)
    assert expected in refused(root, tmp_path / "scan")


def test_a_truth_of_a_class_without_train_images(
    ilsvrc: tuple[Path, Files], tmp_path: Path
) -> None:
    root, _ = ilsvrc
    (root / DEVKIT).write_bytes(devkit([*SYNSETS[:2], (3, "n09", "cock")]))
    assert "n09" in refused(root, tmp_path / "scan")


# --- damage -------------------------------------------------------------------------------------


def test_an_outer_tar_cut_within_an_inner_one_names_the_inner_one(
    ilsvrc: tuple[Path, Files], tmp_path: Path
) -> None:
    root, _ = ilsvrc
    path = root / TRAIN
    inner = list(iter_members(path.open("rb"), "x"))[1]
    path.write_bytes(path.read_bytes()[: inner.offset + 700])
    message = refused(root, tmp_path / "scan")
    assert "n03.tar is cut short" in message
    assert f"at byte {inner.offset + 700:,}" in message
    assert "download it again" in message


def test_an_outer_tar_without_its_end(ilsvrc: tuple[Path, Files], tmp_path: Path) -> None:
    root, _ = ilsvrc
    path = root / TRAIN
    last = list(iter_members(path.open("rb"), "x"))[-1]
    path.write_bytes(path.read_bytes()[: last.offset + last.size])
    message = refused(root, tmp_path / "scan")
    assert "zeros that end an archive are missing" in message
    assert TRAIN in message


def test_an_inner_tar_cut_before_it_was_packed(tmp_path: Path) -> None:
    """The outer archive is whole."""
    first, second = jpegs(2)
    inner = packed({"a.JPEG": first, "b.JPEG": second})
    cut = inner[: 512 + -(-len(first) // 512) * 512 + 512 + 100]
    (tmp_path / "all.tar").write_bytes(packed({"n02.tar": cut, "n01.tar": inner}))
    message = refused(tmp_path / "all.tar", tmp_path / "scan")
    assert f"n02.tar is cut short at byte {512 + len(cut):,}" in message


@pytest.mark.parametrize("hole", ["header", "rest", "joined", "padding"])
def test_zeros_are_the_end_only_if_nothing_follows(tmp_path: Path, hole: str) -> None:
    """A download that lacks a piece has zeros there, which tarfile takes for the end."""
    content = bytearray(packed(dict(zip(["a.JPEG", "b.JPEG", "c.JPEG"], jpegs(3), strict=True))))
    at = next(i for i in range(512, len(content), 512) if content[i : i + 6] == b"b.JPEG")
    if hole == "header":
        content[at : at + 512] = bytes(512)
    elif hole == "rest":
        content[at:] = bytes(3 << 20)
    else:
        content += packed({"d.JPEG": jpegs(1)[0]}) if hole == "joined" else bytes(1 << 19)
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "n01.tar").write_bytes(content)
    (tmp_path / "all.tar").write_bytes(packed({"n01.tar": bytes(content)}))
    for i, root in enumerate((tmp_path / "classes", tmp_path / "all.tar")):
        if hole == "padding":
            assert len(listed(root, tmp_path / str(i)).images) == 3
        else:
            message = refused(root, tmp_path / str(i))
            assert "n01.tar is damaged: zeros at byte" in message
            assert "goes on behind them" in message


@pytest.mark.parametrize("whole", [False, True])
def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path: Path, whole: bool) -> None:
    """tarfile by itself would list the first image and be content."""
    images = dict(zip(["a.JPEG", "b.JPEG", "c.JPEG"], jpegs(3), strict=True))
    content = bytearray(packed(images))
    at = next(i for i in range(512, len(content), 512) if content[i : i + 6] == b"b.JPEG")
    content[at + 150] ^= 0xFF
    with tarfile.open(fileobj=io.BytesIO(content)) as lenient:
        assert len(lenient.getmembers()) == 1
    (tmp_path / "classes").mkdir()
    root = tmp_path / "all.tar" if whole else tmp_path / "classes"
    if whole:
        root.write_bytes(packed({"n01.tar": bytes(content)}))
        at += 512
    else:
        (root / "n01.tar").write_bytes(content)
    message = refused(root, tmp_path / "scan")
    assert f"n01.tar is damaged near byte {at:,}" in message


def member(name: str, size: int) -> bytes:
    """A header with a right checksum, whatever the size; below 0 it is a signed base-256 number."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = (
        b"%011o\0" % size if 0 <= size < 8**11
        else (size % 256**12 | (0 if size < 0 else 1 << 95)).to_bytes(12, "big")
    )  # fmt: skip
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("size", [-1, -512, -1024, -(10**6)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_with_a_negative_size_is_damage(tmp_path: Path, size: int, kind: bytes) -> None:
    """Python's tarfile goes back by it, and finds the same header again, for ever."""
    header = bytearray(member("b.jpg", size))
    header[156:157] = kind
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "lies.tar"
    path.write_bytes(member("a.jpg", 512) + bytes(512) + bytes(header) + bytes(2048))
    names = []
    with path.open("rb") as stream, pytest.raises(SourceError, match="damaged near byte") as caught:
        names.extend(found.name for found in iter_members(stream, str(path)))
    assert set(names) <= {"a.jpg"}
    assert str(path) in str(caught.value)


def test_a_member_longer_than_any_file_is_cut_short(tmp_path: Path) -> None:
    """The system refuses to go to its end, and would name no file."""
    path = tmp_path / "lies.tar"
    path.write_bytes(member("a.jpg", 1 << 62) + bytes(2048))
    with path.open("rb") as stream, pytest.raises(SourceError, match="is cut short") as caught:
        list(iter_members(stream, str(path)))
    assert str(path) in str(caught.value)


def test_members_beyond_4_gib_are_found(tmp_path: Path) -> None:
    """A file that long, and one behind it; the disk holds a few blocks of it."""
    path, size = tmp_path / "long.tar", 5 << 30
    with path.open("wb") as file:
        file.write(member("a.jpg", size))
        file.seek(512 + size)
        file.write(member("b.jpg", 3) + b"abc".ljust(512, b"\0") + bytes(1024))
    with path.open("rb") as stream:
        found = [(m.name, m.offset, m.size) for m in iter_members(stream, str(path))]
    assert found == [("a.jpg", 512, size), ("b.jpg", 1024 + size, 3)]
    with path.open("rb") as file:
        file.seek(found[1][1])
        assert file.read(3) == b"abc"


def test_a_member_longer_than_8_gib_has_a_base_256_size(tmp_path: Path) -> None:
    path, size = tmp_path / "longer.tar", 9 << 30
    with path.open("wb") as file:
        file.write(member("a.jpg", size))
        file.seek(512 + size)
        file.write(bytes(1024))
    with path.open("rb") as stream:
        assert [(m.offset, m.size) for m in iter_members(stream, str(path))] == [(512, size)]
