"""Archives read in place: every image that is listed has the bytes of the file that was packed."""

import gzip
import io
import json
import logging
import random
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.errors import SourceError
from pipeline.index import Index, Scan, Summary
from pipeline.options import preparation
from pipeline.reading import Feeder, Place, Reader
from pipeline.sources import gzipped, recognise
from pipeline.sources.tar import is_tar, walk
from pipeline.splits import assign
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
        (devkit()[:-40], "cannot be read"),
        (gzip.compress(packed({"data/meta.mat": b"no matrix"})), "cannot be read"),
        (gzip.compress(packed({"readme": b""})), "lacks meta.mat"),
    ],
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
    inner = list(walk(path.open("rb"), "x"))[1]
    path.write_bytes(path.read_bytes()[: inner.offset + 700])
    message = refused(root, tmp_path / "scan")
    assert "n03.tar is cut short" in message
    assert f"at byte {inner.offset + 700:,}" in message
    assert "download it again" in message


def test_an_outer_tar_without_its_end(ilsvrc: tuple[Path, Files], tmp_path: Path) -> None:
    root, _ = ilsvrc
    path = root / TRAIN
    last = list(walk(path.open("rb"), "x"))[-1]
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


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo("x.JPEG")
        entry.type, entry.linkname = kind, "/etc/passwd"
        tar.addfile(entry)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "n01.tar").write_bytes(file.getvalue())
    assert "x.JPEG is a link" in refused(tmp_path / "tars", tmp_path / "scan")


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
    read = gzipped.open_gzip(path, tmp_path)
    for _ in range(60):
        offset, size = draw.randrange(len(content) - 1), draw.randrange(1, 90_000)
        size = min(size, len(content) - offset)
        assert read(Place(0, "", offset, size)) == content[offset : offset + size]
    with pytest.raises(SourceError, match="shorter"):
        read(Place(0, "", len(content) - 5, 6))


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
    read = gzipped.open_gzip(path, tmp_path)
    assert read(Place(0, "", 515, 2)) == b"\3\4"
    assert read(Place(0, "", 0, 2)) == b"\0\1"


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


# --- WebDataset ---------------------------------------------------------------------------------


def shard(labels: dict[str, int], suffix: str = "jpg", label: str = "cls") -> tuple[bytes, Files]:
    """A shard, and its images by key."""
    images = dict(zip(labels, jpegs(len(labels)), strict=True))
    files: list[tuple[str, bytes]] = []
    for key, number in labels.items():
        text = str(number) if label == "cls" else json.dumps({"label": number, "caption": "x"})
        pair = [(f"{key}.{suffix}", images[key]), (f"{key}.{label}", text.encode())]
        files += [*reversed(pair), (f"{key}.txt", b"words")] if label == "cls" else pair
    return packed(files), images


def test_webdataset_shards_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    root, expected, labels = tmp_path / "wds", {}, {}
    root.mkdir()
    for split, number, label in (("train", 10, "cls"), ("train", 9, "json"), ("val", 0, "cls")):
        content, images = shard({"a0": 3, "dir/b": 0, "c": number}, label=label)
        stem = f"imagenet-{'validation' if split == 'val' else split}-{number}"
        (root / f"{stem}.tar").write_bytes(content)
        for (key, data), k in zip(images.items(), (3, 0, number), strict=True):
            expected[f"{split}/{k}/{stem}/{key}"] = data
            labels[f"{split}/{k}/{stem}/{key}"] = k
    found = listed(root, tmp_path / "scan")
    assert found.layout == "webdataset"
    assert found.images == expected
    assert found.labels == labels
    assert found.summary.classes == [str(i) for i in range(11)]
    assert [i.split("/")[2] for i in found.images][::3] == [
        "imagenet-train-9", "imagenet-train-10", "imagenet-validation-0"
    ]  # fmt: skip


def test_webdataset_folders_of_splits_and_a_test_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "wds"
    for folder in ("train", "val", "test"):
        (root / folder).mkdir(parents=True)
        (root / folder / "00.tar").write_bytes(shard({"k": 1}, "png")[0])
    found = listed(root, tmp_path / "scan")
    assert set(found.images) == {"train/1/00/k", "val/1/00/k"}
    assert "test split is left out" in caplog.text


def test_webdataset_without_splits_is_all_train(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    root.mkdir()
    (root / "0000.tar").write_bytes(shard({"k": 1, "l": 1, "m": 0}, "webp")[0])
    (root / "0001.tar").write_bytes(shard({"k": 1}, "JPEG")[0])
    found = listed(root, tmp_path / "scan")
    assert found.ranks == {
        "train/1/0000/k": 0, "train/1/0000/l": 1, "train/0/0000/m": 0, "train/1/0001/k": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"k.jpg": b"1"}, "the key k has no label"),
        ({"k.jpg": b"1", "k.json": b'{"width": 3}'}, "the key k has no label"),
        ({"k.cls": b"1"}, "the key k has no image"),
        ({"k.jpg": b"1", "k.cls": b"n01"}, "no whole number"),
        ({"k.jpg": b"1", "k.cls": b"-1"}, "the label -1"),
        ({"k.jpg": b"1", "k.json": b'{"label": "n01"}'}, "the label 'n01'"),
        ({"k.jpg": b"1", "k.json": b"{"}, "no JSON"),
        ({"k.jpg": b"1", "k.png": b"1", "k.cls": b"1"}, "two images of the key k"),
        ({"readme.txt": b"1"}, "no samples"),
    ],
)
def test_webdataset_names_key_and_shard(tmp_path: Path, files: Files, expected: str) -> None:
    root = tmp_path / "wds"
    root.mkdir()
    (root / "0000.tar").write_bytes(shard({"a": 1})[0])
    (root / "0001.tar").write_bytes(packed(files))
    message = refused(root, tmp_path / "scan")
    assert expected in message
    assert "0001.tar" in message


def test_webdataset_with_shards_of_no_split_among_others(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    root.mkdir()
    for name in ("train-0.tar", "more.tar"):
        (root / name).write_bytes(shard({"a": 1})[0])
    assert "more.tar" in refused(root, tmp_path / "scan")


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
