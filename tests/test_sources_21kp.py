"""ImageNet-21K-P as it is handed out, processed: three folders, none of which is a class."""

import gzip
import tarfile
from pathlib import Path

import pytest

from tests.listing import indexed, listing
from tests.test_sources_tar import listed, refused
from tests.test_sources_trees import put

OUTER = "imagenet21k_resized"
Files = dict[str, bytes]


def tree(root: Path) -> Files:
    """The three folders; what should be found in them."""
    expected = {}
    for wnid in ("n00005787", "n00006484"):
        for folder, split in (("imagenet21k_train", "train"), ("imagenet21k_val", "val")):
            for number in (10, 2):
                name = f"{wnid}_{number}{split}.JPEG"
                expected[f"{split}/{wnid}/{name}"] = put(root / folder / wnid / name)
    put(root / "imagenet21k_small_classes" / "n00004475" / "n00004475_1.JPEG")
    return expected


@pytest.mark.parametrize("named", ["", OUTER])
def test_three_folders_are_train_and_val(
    named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = tree(tmp_path / "a" / OUTER)
    found = listing(tmp_path / "a" / named, tmp_path / "index")
    assert found.layout == "imagenet21k-p"
    assert found.summary.classes == ["n00005787", "n00006484"]
    assert {key: row.data for key, row in found.rows.items()} == expected
    assert "left out: imagenet21k_small_classes" in caplog.text


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "gzip"])
@pytest.mark.parametrize("outer", [OUTER, "."])
def test_the_same_in_one_archive(
    pack: "type[bytes]", outer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = tree(tmp_path / "a")
    with tarfile.open(tmp_path / "plain", "w") as tar:
        tar.add(tmp_path / "a", outer)
    path = tmp_path / "imagenet21k_resized.tar.gz"
    path.write_bytes(pack((tmp_path / "plain").read_bytes()))
    found = listed(path, tmp_path / "scan")
    assert found.layout == "imagenet21k-p-tar"
    assert found.images == expected
    assert found.summary.classes == ["n00005787", "n00006484"]
    assert "left out: 1 files of imagenet21k_small_classes" in caplog.text


def test_no_rule_takes_val_from_train_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All classes are kept, however few images are left in train."""
    tree(tmp_path / "a")
    found = indexed("imagenet21k", tmp_path / "a", tmp_path / "index").summary
    assert "are kept" not in caplog.text
    assert found.classes == ["n00005787", "n00006484"]
    assert (found.counts["train"] + found.counts["calib"], found.counts["val"]) == (4, 4)


def test_half_of_it_is_refused(tmp_path: Path) -> None:
    tree(tmp_path / "a")
    (tmp_path / "a" / "imagenet21k_val").rename(tmp_path / "b")
    assert "has no imagenet21k_val: unpack" in refused(tmp_path / "a", tmp_path / "scan")


def test_a_class_in_two_places_is_refused_and_a_file_of_no_class_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree(tmp_path / "a")
    put(tmp_path / "LICENSE")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "LICENSE", "LICENSE")
        tar.add(tmp_path / "a", OUTER)
    assert len(listed(path, tmp_path / "scan").images) == 8
    assert "left out: 2 files of imagenet21k_small_classes or of no class" in caplog.text
    with tarfile.open(path, "a") as tar:
        tar.add(tmp_path / "LICENSE", f"{OUTER}/imagenet21k_train/n00005787/z.JPEG")
    assert "comes in two places" in refused(path, tmp_path / "scan")
