"""Archives of archives: class tars, one whole tar in gzip, ImageNet-V2."""

import gzip
import random
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.preparation import preparation
from pipeline.sources import recognise
from pipeline.sources.containers import gzip as gzipped
from pipeline.sources.containers.tar import is_tar
from pipeline.sources.index import Container, Index, Place
from pipeline.sources.scan import Scan
from pipeline.sources.splits import assign
from tests.test_sources_tar import (
    Files,
    jpegs,
    listed,
    packed,
    refused,
)

# --- class tars and whole tars ------------------------------------------------------------------


def test_class_tars_take_what_is_inside_by_its_base_name(tmp_path: Path) -> None:
    """Folders, hidden files and hard names; long names; webp is an image as any other."""
    one, two, three = jpegs(3)
    webp = jpegs(1, "WEBP")[0]
    root = tmp_path / "tars"
    root.mkdir()
    long = "x" * 200 + ".JPEG"
    files = {
        "n02/": b"",
        "./n02/b.JPEG": one,
        "../a.JPEG": two,
        "._a.JPEG": b"mac",
        f"n02/{long}": three,
    }
    (root / "n02.tar").write_bytes(packed(files, tarfile.PAX_FORMAT))
    (root / "n01.tar").write_bytes(packed({"w.webp": webp}))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn03\tother\n")
    found = listed(root, tmp_path / "scan")
    assert found.layout == "class-tars"
    assert found.images == {
        "train/n01/w.webp": webp,
        "train/n02/b.JPEG": one,
        "train/n02/a.JPEG": two,
        f"train/n02/{long}": three,
    }
    assert [found.ranks[f"train/n02/{n}"] for n in ("a.JPEG", "b.JPEG", long)] == [0, 1, 2]
    assert found.summary.names == ["goldfish, Carassius", "n02"]
    assert not (tmp_path / "a.JPEG").exists()


def test_class_tars_with_something_else_beside_them_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "tars"
    root.mkdir()
    (root / "n01.tar").write_bytes(packed({"a.JPEG": jpegs(1)[0]}))
    (root / "n02.tar.part").write_bytes(b"")
    listed(root, tmp_path / "scan")
    assert "n02.tar.part" in caplog.text


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "empty class"),
        ([("a/x.JPEG", b"1"), ("b/x.JPEG", b"2")], "two files called x.JPEG"),
        ([("n02.tar", b"1")], "use --source"),
    ],
)
def test_class_tars_that_cannot_be_used(
    tmp_path: Path, files: list[tuple[str, bytes]], expected: str
) -> None:
    root = tmp_path / "tars"
    root.mkdir()
    (root / "n01.tar").write_bytes(packed(files))
    assert expected in refused(root, tmp_path / "scan")


def test_tars_in_gzip_within_a_folder_are_said_to_be(tmp_path: Path) -> None:
    root = tmp_path / "tars"
    root.mkdir()
    (root / "n01.tar").write_bytes(gzip.compress(packed({"a.JPEG": jpegs(1)[0]})))
    assert "n01.tar is packed with gzip" in refused(root, tmp_path / "scan")


def whole(folder: str = "winter21_whole/") -> tuple[bytes, Files]:
    """Tars of classes that do not come in order, within a folder."""
    images, files, expected = jpegs(9), [(f"{folder}._n2.tar", b"mac")], {}
    for i, wnid in enumerate(("n2", "n9", "n10")):
        inner = {f"{wnid}_{k}.JPEG": images[3 * i + k] for k in (2, 0, 1)}
        expected |= {f"train/{wnid}/{name}": data for name, data in inner.items()}
        files.append((f"{folder}{wnid}.tar", packed(inner)))
    return packed(files), expected


def pigz(content: bytes) -> bytes:
    """Several members, and zeros to fill a block."""
    parts = [gzip.compress(content[i : i + 3001]) for i in range(0, len(content), 3001)]
    return b"".join(parts) + b"\0" * 100


@pytest.mark.parametrize("pack", [bytes, gzip.compress, pigz], ids=["tar", "gzip", "members"])
def test_a_whole_tar(tmp_path: Path, pack: "type[bytes]") -> None:
    """Recognised by content, whatever the name."""
    content, expected = whole()
    path = tmp_path / "data.bin"
    path.write_bytes(pack(content))
    (tmp_path / "LOC_synset_mapping.txt").write_text("n2 tench, Tinca\nn9 hen\n")
    found = listed(path, tmp_path / "scan")
    assert found.layout == "whole-tar"
    assert found.images == expected
    assert list(found.images) == list(expected)
    assert found.summary.classes == ["n10", "n2", "n9"]
    assert found.summary.names == ["n10", "tench, Tinca", "hen"]
    assert found.ranks["train/n9/n9_2.JPEG"] == 2
    assert (found.summary.containers[0].kind == "gzip") == (pack is not bytes)


def test_an_inner_tar_that_ends_in_a_single_block_of_zeros(tmp_path: Path) -> None:
    """The walk over the inner tar then stands where the outer one goes on, not before."""
    (image,) = jpegs(1)
    inner = packed({"a.JPEG": image})
    inner = inner[: 512 + -(-len(image) // 512) * 512 + 512]
    content = packed({"n1.tar": inner, "n2.tar": inner})
    (tmp_path / "all.tgz").write_bytes(gzip.compress(content))
    found = listed(tmp_path / "all.tgz", tmp_path / "scan")
    assert found.images == {"train/n1/a.JPEG": image, "train/n2/a.JPEG": image}


def test_a_whole_tar_says_what_it_leaves_out_and_what_comes_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = packed({"a.JPEG": jpegs(1)[0]})
    path = tmp_path / "all.tar"
    path.write_bytes(packed([("README", b"hi"), ("n1.tar", inner)]))
    listed(path, tmp_path / "scan")
    assert "README" in caplog.text
    path.write_bytes(packed([("n1.tar", inner), ("x/n1.tar", inner)]))
    assert "comes twice" in refused(path, tmp_path / "scan")


def test_val_of_21k_is_the_first_by_name_however_they_are_packed(tmp_path: Path) -> None:
    names = [f"n2_{i}.JPEG" for i in range(501)]
    random.Random(0).shuffle(names)
    large = packed((name, name.encode()) for name in names)
    path = tmp_path / "all.tar.gz"
    path.write_bytes(gzip.compress(packed({"n2.tar": large, "n1.tar": packed({"x": b"x"})})))
    scan = Scan(tmp_path, path, lambda count, note: None)
    recognise(path).scan(scan)
    index = assign(scan, preparation("imagenet21k", 36), tmp_path)
    rows = [row for batch in index.batches() for row in batch.to_pylist()]
    val = {row["id"].split("/")[-1] for row in rows if row["split"] == 2}
    assert val == set(sorted(names)[:50])
    assert index.summary.classes == ["n2"]


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_gzip_stream_cut_short(tmp_path: Path, share: float) -> None:
    content = gzip.compress(whole()[0])
    path = tmp_path / "all.tar.gz"
    cut = int(len(content) * share)
    path.write_bytes(content[:cut])
    message = refused(path, tmp_path / "scan")
    assert f"all.tar.gz ends at byte {cut:,}, in the middle of its gzip stream" in message


@pytest.mark.parametrize("where", [0.6, -6], ids=["data", "checksum"])
def test_a_gzip_stream_with_a_flipped_bit(tmp_path: Path, where: float) -> None:
    """Within the data of an image only the checksum at the end can tell."""
    content = bytearray(gzip.compress(whole()[0]))
    at = int(len(content) * where) if where > 0 else int(where)
    content[at] ^= 1
    path = tmp_path / "all.tar.gz"
    path.write_bytes(content)
    assert "download it again" in refused(path, tmp_path / "scan")


def test_something_else_after_a_gzip_stream(tmp_path: Path) -> None:
    path = tmp_path / "all.tar.gz"
    path.write_bytes(gzip.compress(whole()[0]) + b"something else")
    assert "no gzip stream" in refused(path, tmp_path / "scan")


def reader(path: Path, folder: Path) -> gzipped.GzipReader:
    return gzipped.GzipReader(path, Container("", "gzip"), folder)


@pytest.mark.parametrize("members", [1, 5])
def test_a_gzip_file_is_read_from_any_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: int
) -> None:
    """Forward, backward, over the borders of members; only what lies after a point is inflated."""
    monkeypatch.setattr(gzipped, "SPACING", 1 << 16)
    monkeypatch.setattr(gzipped, "_CHUNK", 1 << 14)
    words = [f"word{i}".encode() for i in range(999)]
    draw = random.Random(1)
    content = b" ".join(draw.choice(words) for _ in range(150_000))
    path, step = tmp_path / "text.gz", len(content) // members + 1
    path.write_bytes(
        b"".join(gzip.compress(content[i : i + step]) for i in range(0, len(content), step))
    )
    points = gzipped.points_of(path, tmp_path)
    with gzipped.Gunzip(path, points) as stream:
        stream.seek(len(content) + 1)
        assert stream.tell() == len(content)
    found = [points.before(i) for i in range(0, len(content), 1 << 16)]
    assert len({point and point.output for point in found}) > 8
    assert len({point.bits for point in found if point}) > 2
    inflate = reader(path, tmp_path).inflate
    for _ in range(60):
        offset, size = draw.randrange(len(content) - 1), draw.randrange(1, 90_000)
        size = min(size, len(content) - offset)
        assert inflate(offset, size) == content[offset : offset + size]
    with pytest.raises(SourceError, match="shorter"):
        inflate(len(content) - 5, 6)


def test_damaged_points_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit in a window gave other bytes of an image, as if they were sound."""
    monkeypatch.setattr(gzipped, "SPACING", 1 << 16)
    monkeypatch.setattr(gzipped, "_CHUNK", 1 << 14)
    draw = random.Random(1)
    content = b" ".join(b"word%d" % draw.randrange(999) for _ in range(70_000))
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(content))
    points = gzipped.points_of(path, tmp_path)
    with gzipped.Gunzip(path, points) as stream:
        stream.finish()
    whole = points.path.read_bytes()
    sound = [points.before(i) for i in range(0, len(content), 1 << 15)]
    assert len({point.output for point in sound if point}) > 3
    for at in range(5, len(whole), 9001):
        points.path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        for offset in range(0, len(content) - 99, 1 << 16):
            inflate = reader(path, tmp_path).inflate
            assert inflate(offset, 99) == content[offset : offset + 99]


def test_a_scan_makes_its_points_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzipped, "SPACING", 1 << 10)
    monkeypatch.setattr(gzipped, "_CHUNK", 1 << 10)
    path = tmp_path / "all.tar.gz"
    path.write_bytes(pigz(whole()[0]))
    listed(path, tmp_path / "scan")
    points = gzipped.points_of(path, tmp_path / "scan").path
    size = points.stat().st_size
    listed(path, tmp_path / "scan")
    assert points.stat().st_size == size > 0


def test_a_gzip_file_is_read_without_points(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 99))
    inflate = reader(path, tmp_path).inflate
    assert inflate(515, 2) == b"\3\4"
    assert inflate(0, 2) == b"\0\1"


def places(scan: Scan) -> list[Place]:
    return [
        Place(row["file"], row["member"], row["offset"], row["size"])
        for batch in scan.batches()
        for row in batch.to_pylist()
    ]


def test_a_member_with_other_bytes_than_were_indexed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes inflated from a point on have no checksum of their own: a bit that the disk has
    flipped would be decoded and stored.
    """
    monkeypatch.setattr(gzipped, "SPACING", 1 << 10)
    monkeypatch.setattr(gzipped, "_CHUNK", 1 << 10)
    path = tmp_path / "all.tar.gz"
    images = {f"{i}.jpg": bytes([i]) * 3 + random.Random(i).randbytes(30_000) for i in range(9)}
    images["4.jpg"] = b""
    path.write_bytes(gzip.compress(packed({"n1.tar": packed(images)}), 0))
    scan = Scan(tmp_path, path, lambda count, note: None)
    recognise(path).scan(scan)
    listed = places(scan)
    assert len(listed) == 9
    assert {gzipped.points_of(path, tmp_path).before(place.offset) for place in listed} != {None}
    content = bytearray(path.read_bytes())
    content[content.index(images["7.jpg"]) + 1000] ^= 4
    path.write_bytes(content)
    read = reader(path, tmp_path).read
    for place in reversed(listed):
        if place.member == "n1.tar/7.jpg":
            with pytest.raises(SourceError, match=r"gz: n1.tar/7.jpg has other bytes than when"):
                read(place)
        else:
            assert read(place) == images[place.member.removeprefix("n1.tar/")]


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_list_of_sums_is_no_reason_to_believe(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "all.tar.gz"
    path.write_bytes(gzip.compress(whole()[0]))
    scan = Scan(tmp_path, path, lambda count, note: None)
    recognise(path).scan(scan)
    sums = gzipped.sums_of(path, tmp_path).path
    found = sums.read_bytes()
    assert len(found) == 9 * 20
    if damage == "gone":
        sums.unlink()
    else:
        sums.write_bytes(found[:-1] if damage == "cut" else found[:-1] + bytes([found[-1] ^ 1]))
    *others, last = places(scan)
    read = reader(path, tmp_path).read
    if damage != "gone":
        assert all(map(read, others))
    with pytest.raises(SourceError, match="other bytes"):
        read(last)


# --- ImageNet-V2 --------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_imagenetv2_folders_are_numbers(tmp_path: Path, pack: "type[bytes]") -> None:
    """Sorted as text, 10 would come before 2; and all is val."""
    images = jpegs(4)
    top = "imagenetv2-matched-frequency-format-val"
    files = {f"{top}/{n}/x{i}.jpeg": images[i] for i, n in enumerate((889, 2, 10, 2))}
    path = tmp_path / "v2"
    path.write_bytes(pack(packed(files)))
    found = listed(path, tmp_path / "scan")
    assert found.layout == "imagenetv2-tar"
    assert found.labels == {
        "val/889/x0.jpeg": 889, "val/2/x1.jpeg": 2, "val/10/x2.jpeg": 10, "val/2/x3.jpeg": 2
    }  # fmt: skip
    assert list(found.images.values()) == images
    assert len(found.summary.classes) == 1000


def test_imagenetv2_makes_an_index_of_val_alone(tmp_path: Path) -> None:
    path = tmp_path / "imagenetv2.tar"
    path.write_bytes(packed({f"imagenetv2/{n}/x.jpeg": jpegs(1)[0] for n in range(3)}))
    scan = Scan(tmp_path, path, lambda count, note: None)
    recognise(path).scan(scan)
    index = assign(scan, preparation("v2", 4, size=32), tmp_path)
    assert isinstance(index, Index)
    assert index.summary.counts == {"train": 0, "calib": 0, "val": 3, "test": 0}


@pytest.mark.parametrize(
    "name", ["imagenetv2/1000/x.jpeg", "imagenetv2/x.jpeg", "./imagenetv2/1/x.jpeg"]
)
def test_imagenetv2_with_a_strange_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "v2.tar"
    path.write_bytes(packed({"imagenetv2/1/x.jpeg": b"1", name: b"2"}))
    assert name in refused(path, tmp_path / "scan")


def test_a_tar_is_known_by_the_checksum_of_its_header(tmp_path: Path) -> None:
    """Tars of the seventies have no magic."""
    header = bytearray(packed({"n01.tar": b""})[:512])
    header[148:156], header[257:265] = b" " * 8, b"\0" * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    found = {}
    for name, content in (("v7", header), ("bad", b"x" + header[1:]), ("zeros", bytes(512))):
        (tmp_path / name).write_bytes(content)
        found[name] = is_tar(tmp_path / name)
    assert found == {"v7": True, "bad": False, "zeros": False}


def test_a_file_of_unknown_content_is_answered_with_what_is_accepted(tmp_path: Path) -> None:
    for name, content in (
        ("x.tar", b"no tar"),
        ("y.tar.gz", b"no gzip"),
        ("z", gzip.compress(b"z")),
    ):
        (tmp_path / name).write_bytes(content)
        message = refused(tmp_path / name, tmp_path / "scan")
        assert "whole-tar" in message
        assert "ilsvrc-tars" in message
