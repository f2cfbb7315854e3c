"""Folders of splits are never taken for classes, whatever people call them."""

import unicodedata
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from tests.conftest import spectral_here
from tests.listing import listing
from tests.test_sources_tar import jpegs, packed
from tests.test_sources_trees import put


def tree(root: Path, *names: str, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for name in names:
        for key in classes:
            put(root / name / key / "0.jpg")
    return root


def refused(root: Path, *matches: str) -> None:
    with pytest.raises(SourceError) as caught:
        listing(root, root.with_name("index"))
    for match in matches:
        assert match in str(caught.value)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", "Testing", ""),
        ("training", "validation", "testing"),
        ("Train", "Val", "Test"),
        ("TRAIN", "valid", ""),
        ("train", "val", "test"),
        ("train", "test", ""),
    ],
)
def test_well_known_names_of_splits(
    train: str, val: str, test: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A test split that has classes is val where there is no other one, as with Parquet."""
    root = tree(tmp_path / "a", *filter(None, (train, val, test)))
    found = listing(root, tmp_path / "index")
    expected = [f"{s}/{c}/0.jpg" for s in ("train", "val", "test") for c in ("cat", "dog")]
    assert list(found.rows) == expected[: 6 if test else 4]
    assert found.summary.classes == ["cat", "dog"]
    assert ("is val, as there is no other one" in caplog.text) == (val.lower()[:4] == "test")


def test_a_test_split_without_classes_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path / "a", "train", "val")
    put(root / "Test" / "images" / "0.jpg")
    assert {row.split for row in listing(root, tmp_path / "index").rows.values()} == {
        "train", "val",
    }  # fmt: skip
    assert "Test has no folders of classes: left out" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "val", "valid"), "has val, valid, which are all val"),
        (("train", "Training"), "which are all train"),
        (("Valid",), "but no train/"),
        (("seg_train", "seg_test", "seg_pred"), "look like splits"),
        (("training_set", "test_set"), "look like splits"),
        (("TrainImages", "EvalImages"), "look like splits"),
        (("train2017", "val2017"), "look like splits"),
        (("train", "val", "labels"), "and also labels"),
        (("Train", "dev"), "and also dev"),
        (("Control", "Test"), "and also Control"),
    ],
)
def test_what_cannot_be_told_is_refused_with_a_way_out(
    names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    root = tree(tmp_path / "a", *names)
    refused(root, message)
    if "train" not in map(str.lower, names):
        refused(root, f"into a folder train: {root / 'train'}")


@pytest.mark.parametrize("name", ["train", "Train"])
def test_a_class_called_as_a_split_has_a_way_out(name: str, tmp_path: Path) -> None:
    """The way that the message names works."""
    root = tmp_path / "a"
    for key in ("airplane", "bicycle", name):
        put(root / key / "0.jpg")
    refused(root, f"classes, put them into a folder train: {root / 'train' / name}")
    (tmp_path / "b").mkdir()
    root.rename(tmp_path / "b" / "train")
    found = listing(tmp_path / "b", tmp_path / "index")
    assert found.summary.classes == sorted(("airplane", "bicycle", name))


def test_words_that_are_classes_stay_classes(tmp_path: Path) -> None:
    """Their folders hold images: a split has them in folders of classes."""
    names = ["Control", "Test", "bullet_train", "latest", "test_tube", "trainer"]
    for name in names:
        put(tmp_path / "a" / name / "0.jpg")
    assert listing(tmp_path / "a", tmp_path / "index").summary.classes == names


@pytest.mark.parametrize("names", [("images", "labels"), ("cat", "dog"), ("archive",)])
def test_splits_within_folders_are_not_trained_on(names: tuple[str, ...], tmp_path: Path) -> None:
    """As detectors have them, as some have them in each class, and one level too high."""
    for name in names:
        tree(tmp_path / "a" / name, "train", "Test", classes=("x",))
    refused(tmp_path / "a", "holds Test, train, which are splits", f"{tmp_path / 'a' / names[0]}")


def test_classes_that_all_hold_the_same_folders_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listing(tree(tmp_path / "a", "amazon", "webcam"), tmp_path / "i1")
    assert "taken for classes, but each holds cat, dog" in caplog.text
    caplog.clear()
    tree(tmp_path / "b", "x", "y", classes=("images",))
    listing(tmp_path / "b", tmp_path / "i2")
    assert "taken for classes" not in caplog.text


def test_names_that_look_alike_are_said_to_be_and_how_to_mend_them(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    tree(tmp_path / "a", "train", classes=(composed, "bar"))
    tree(tmp_path / "a", "val", classes=(apart, "bar"))
    refused(tmp_path / "a", "has classes that", "look alike", "convmv")
    tree(tmp_path / "b", "train", classes=(composed, apart))
    refused(tmp_path / "b", "two classes that look alike", "convmv")


def test_val_in_one_folder_is_told_what_knows_its_classes(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", "train")
    put(root / "val" / "ILSVRC2012_val_00000001.JPEG")
    refused(root, "val has no class folders", "official tar", "Kaggle's tree")


def test_tars_of_splits_are_no_classes_either(tmp_path: Path) -> None:
    root, image = tmp_path / "a", jpegs(1)[0]
    root.mkdir()
    inside = packed({"n01/0.jpg": image, "n02/1.jpg": image})
    (root / "ilsvrc_train.tar").write_bytes(inside)
    (root / "other.tar").write_bytes(inside)
    refused(root, "ilsvrc_train.tar: named as splits, not classes", "Unpack each")
    (root / "bullet_train.tar").write_bytes(packed({"n01/0.jpg": image}))
    (root / "ilsvrc_train.tar").unlink()
    assert listing(root, tmp_path / "index").summary.classes == ["bullet_train", "other"]
    (tmp_path / "b").mkdir()
    for name in ("train.tar", "val.tar"):
        (tmp_path / "b" / name).write_bytes(packed({"0.jpg": image}))
    refused(tmp_path / "b", "train.tar, val.tar: named as splits")
    whole = {name: packed({"0.jpg": image}) for name in ("train.tar", "val.tar")}
    (tmp_path / "c.tar").write_bytes(packed(whole))
    refused(tmp_path / "c.tar", "train.tar, val.tar: named as splits")


def test_the_command_trains_on_the_classes(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", "Training", "Testing")
    done = spectral_here(
        "prepare", "toy", "--source", root, "--out", tmp_path / "out", "--splits", 4, "--size", 16
    )
    assert done.returncode == 0, done.stderr
    described = spectral_here("inspect", next((tmp_path / "out" / "toy").iterdir()))
    assert "2 classes" in described.stdout
    assert "val: 2 indexed" in described.stdout
