"""WebDataset in every way that people name the files of a sample; never taken for class tars."""

import json
from pathlib import Path

import pytest

from pipeline.sources import recognise
from tests.test_sources_tar import Files, jpegs, listed, packed, refused


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


def test_webdataset_says_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "wds"
    for path in ("train-0.tar", "train/1.tar", "more/2.tar"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(shard({"k": 1})[0])
    (root / "train" / "3.tar.part").write_bytes(b"")
    found = listed(root, tmp_path / "scan")
    assert len(found.images) == 2
    assert "no shards: train/3.tar.part, more" in caplog.text


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
        ({"k.jpg": b"1", "k.json": b"[" * 300_000}, "no JSON"),
        ({"k.jpg": b"1", "k.png": b"1", "k.cls": b"1"}, "two images of the key k"),
        ({"readme.txt": b"1"}, "no samples"),
        ({"k.seg.png": b"1", "k.cls": b"1", "l.jpg": b"1", "l.cls": b"1"}, "k has no image"),
        ({"k.a.jpg": b"1", "k.b.jpg": b"1", "k.cls": b"1"}, "not clear which image"),
        ({"k.jpg": b"1", "k.a.cls": b"1", "k.b.cls": b"1"}, "not clear which label"),
        ({"k.jpg": b"1", "k.cls": b"1", "./k.cls": b"2"}, "two labels of the key"),
        ({"k.jpg": b"1", "k.txt": b"a cat"}, "the key k has no label"),
        ({"k.jpg": b"1", "k.npy": b"1"}, "the key k has no label"),
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


SEVERAL: dict[str, list[tuple[str, bytes]]] = {
    "input and output": [
        (f"{key}.{end}", data)
        for key in "ab"
        for end, data in (("input.jpg", b""), ("output.cls", b"1"))
    ],
    "keys with dots": [
        (f"n01.000{i}.{end}", data) for i in (1, 2) for end, data in (("jpg", b""), ("cls", b"1"))
    ],
    "labels first": [
        *((f"{i}.cls", b"1") for i in range(12)),
        *((f"{i}.jpg", b"") for i in range(12)),
    ],
    "images first": [
        *((f"{i}.jpg", b"") for i in range(12)),
        *((f"{i}.cls", b"1") for i in range(12)),
    ],
    "bmp": [("a.bmp", b""), ("a.cls", b"1")],
    "numbers as text": [("a.jpg", b""), ("a.txt", b" 1\n"), ("b.jpg", b""), ("b.txt", b"1")],
    "cls2": [("a.jpg", b""), ("a.cls2", b"1"), ("a.txt", b"words")],
    "dots and output": [
        (f"{i}.x.{end}", data) for i in (1, 2) for end, data in (("jpg", b""), ("json", b"1"))
    ],
}


@pytest.mark.parametrize("form", SEVERAL)
def test_webdataset_in_the_forms_that_people_write(form: str, tmp_path: Path) -> None:
    """None of them is taken for tars of classes."""
    root = tmp_path / "wds"
    root.mkdir()
    count = sum(not data for _, data in SEVERAL[form])
    images = iter(jpegs(count))
    files = [(name, data or next(images)) for name, data in SEVERAL[form]]
    (root / "train-000000.tar").write_bytes(packed(files))
    (root / "train-000001.tar").write_bytes(packed(files))
    found = listed(root, tmp_path / "scan")
    assert found.layout == "webdataset"
    assert sorted(found.images.values()) == sorted(jpegs(count) * 2)
    assert set(found.labels.values()) == {1}


def test_webdataset_samples_are_told_from_tars_of_classes(tmp_path: Path) -> None:
    """By what belongs to an image, even if it is no label; a text on its own is none."""
    root = tmp_path / "tars"
    root.mkdir()
    (root / "n01.tar").write_bytes(
        packed({"a.jpg": jpegs(1)[0], "b.png": b"1", "LICENSE.txt": b""})
    )
    assert recognise(root).layout == "class-tars"
    (root / "n01.tar").write_bytes(packed({"a.jpg": b"1", "a.npy": b"1"}))
    assert "pack it without other files" in refused(root, tmp_path / "scan")


def test_webdataset_labels_with_large_gaps_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    root.mkdir()
    (root / "0.tar").write_bytes(shard({f"k{i}": 100_000 * i for i in range(8)})[0])
    message = refused(root, tmp_path / "scan")
    assert "labels up to 700,000, but only 8 different ones" in message
    assert "Number the classes from 0" in message
    (root / "0.tar").write_bytes(shard({"a": 0, "b": 9_999})[0])
    assert len(listed(root, tmp_path / "scan").summary.classes) == 10_000


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["train-{08..11}", "train-13"], "train-12.tar"),
        (["0", "1", "3", "10"], "2.tar, 4.tar, 5.tar, 6.tar, 7.tar and 2 more"),
        (["train/a-00001-of-00004"], "a-00000-of-00004.tar, train/a-00002-of-00004.tar"),
        (["train-0", "val-2"], ""),
        (["20240101", "20260101"], ""),
    ],
)
def test_webdataset_shards_that_are_missing_are_said(
    names: list[str], missing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "wds"
    for name in names:
        each = [f"train-{n:02d}" for n in range(8, 12)] if "{" in name else [name]
        for stem in each:
            (root / stem).parent.mkdir(parents=True, exist_ok=True)
            (root / f"{stem}.tar").write_bytes(shard({"k": 1})[0])
    listed(root, tmp_path / "scan")
    said = [r.getMessage() for r in caplog.records if "shards are missing" in r.getMessage()]
    assert bool(said) == bool(missing)
    assert not missing or missing in said[0]


def test_webdataset_with_shards_of_no_split_among_others(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    root.mkdir()
    for name in ("train-0.tar", "more.tar"):
        (root / name).write_bytes(shard({"a": 1})[0])
    assert "more.tar" in refused(root, tmp_path / "scan")


@pytest.mark.parametrize("kind", ["cls", "cls2", "txt"])
@pytest.mark.parametrize(
    "text", ["1_0", "+1", "\u0661", "\uff11", "1\u00a0", "0x1", "1.0", "1 0", ""]
)
def test_webdataset_labels_are_digits_and_nothing_that_python_takes_for_them(
    kind: str, text: str, tmp_path: Path
) -> None:
    """int("1_0") is 10."""
    root = tmp_path / "wds"
    root.mkdir()
    (root / "0.tar").write_bytes(packed({"k.jpg": jpegs(1)[0], f"k.{kind}": text.encode()}))
    said = refused(root, tmp_path / "scan")
    assert ("the key k has no label" if kind == "txt" else "is no whole number") in said


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"k.cls": b"1", "k.json": b'{"label": 2}'}, "k.cls says label 1 and k.json says label 2"),
        ({"k.json": b"2", "k.cls": b"1"}, "k.cls says label 1 and k.json says label 2"),
        ({"k.json": b'{"label": 2, "cls": 1}'}, "k.json says label 2 and cls 1"),
        ({"k.cls": b"1", "k.json": b'{"label": 1}'}, None),
        ({"k.cls": b"1", "k.json": b'{"label": "cat", "width": 3}'}, None),
        ({"k.cls": b"1", "k.json": b"no JSON"}, None),
        ({"k.cls": b"1", "k.cls2": b"7", "k.txt": b"2020"}, None),
    ],
)
def test_webdataset_labels_that_contradict_each_other_are_said(
    files: dict[str, bytes], said: str | None, tmp_path: Path
) -> None:
    root = tmp_path / "wds"
    root.mkdir()
    (root / "0.tar").write_bytes(packed({"k.jpg": jpegs(1)[0], **files}))
    if said is None:
        assert set(listed(root, tmp_path / "scan").labels.values()) == {1}
    else:
        assert said in refused(root, tmp_path / "scan")
