"""Trees of ImageNet's family, in small, with the quirks of the real ones."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.sources import recognise
from tests.conftest import write_class_folders
from tests.listing import Listing, listing, picture

WNIDS = ("n01440764", "n01443537", "n02085620", "n02979186")


def put(path: Path) -> bytes:
    """A new image at `path`; its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture())
    return path.read_bytes()


def content(found: Listing) -> dict[str, tuple[int, bytes]]:
    return {key: (row.label, row.data) for key, row in found.rows.items()}


# Kaggle ---------------------------------------------------------------------------------------

VAL = {f"ILSVRC2012_val_0000000{i}": WNIDS[i * 3 % 4] for i in range(1, 7)}


def kaggle(root: Path) -> dict[str, tuple[int, bytes]]:
    """The tree as the competition's archive unpacks; what should be found in it."""
    tree = root / "ILSVRC" / "Data" / "CLS-LOC"
    expected = {}
    for label, wnid in enumerate(WNIDS):
        for number in (10026, 3):
            name = f"{wnid}_{number}.JPEG"
            expected[f"train/{wnid}/{name}"] = (label, put(tree / "train" / wnid / name))
    for image, wnid in VAL.items():
        data = put(tree / "val" / f"{image}.JPEG")
        expected[f"val/{wnid}/{image}.JPEG"] = (WNIDS.index(wnid), data)
    put(tree / "test" / "ILSVRC2012_test_00000001.JPEG")
    (root / "ILSVRC" / "Annotations").mkdir()
    solution(root, VAL)
    (root / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
        "n02085620 Chihuahua\nn02979186 cassette player\n"
    )
    return expected


def solution(root: Path, classes: dict[str, str]) -> None:
    """Boxes follow the wnid, often several; some rows are quoted, none is sorted."""
    with (root / "LOC_val_solution.csv").open("w", newline="", encoding="utf-8-sig") as file:
        file.write("ImageId,PredictionString\n")
        for number, (image, wnid) in enumerate(reversed(classes.items())):
            boxes = f"{wnid} 85 1 499 272 " + f"{wnid} 3 14 15 92 " * (number % 2)
            quote = csv.QUOTE_ALL if number % 3 == 0 else csv.QUOTE_MINIMAL
            csv.writer(file, quoting=quote).writerow([image, boxes])


@pytest.mark.parametrize("named", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_the_kaggle_tree_is_found_from_any_of_its_folders(
    named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = kaggle(tmp_path / "a")
    found = listing(tmp_path / "a" / named, tmp_path / "index")
    assert found.layout == "kaggle"
    assert found.summary.classes == list(WNIDS)
    assert found.summary.names == [
        "tench, Tinca tinca", "goldfish, Carassius auratus", "Chihuahua", "cassette player",
    ]  # fmt: skip
    assert content(found) == expected
    assert [row.rank for row in found.rows.values() if row.split == "train"] == [0, 1] * 4
    assert "CLS-LOC/test has no labels: left out" in caplog.text


def test_the_source_may_be_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = kaggle(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a" / "ILSVRC")
    assert content(listing(Path(), tmp_path / "index")) == expected


def test_what_kaggle_says_is_watched_for_changes(tmp_path: Path) -> None:
    kaggle(tmp_path / "a")
    seen = listing(tmp_path / "a", tmp_path / "index").summary.origin
    tree = "ILSVRC/Data/CLS-LOC"
    assert {"LOC_val_solution.csv", tree, f"{tree}/val", f"{tree}/train/{WNIDS[0]}"} <= set(seen)


def test_val_that_somebody_has_sorted_needs_no_solution(tmp_path: Path) -> None:
    expected = kaggle(tmp_path / "a")
    val = tmp_path / "a" / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    for image, wnid in VAL.items():
        (val / wnid).mkdir(exist_ok=True)
        (val / f"{image}.JPEG").rename(val / wnid / f"{image}.JPEG")
    (tmp_path / "a" / "LOC_val_solution.csv").unlink()
    assert content(listing(tmp_path / "a", tmp_path / "index")) == expected
    put(val / "loose.JPEG")
    with pytest.raises(SourceError, match=r"files beside its class folders: loose.JPEG"):
        listing(tmp_path / "a", tmp_path / "index")


def lines(edit: Callable[[str], str]) -> Callable[[Path], None]:
    """Edit the solution."""

    def apply(root: Path) -> None:
        path = root / "LOC_val_solution.csv"
        path.write_text(edit(path.read_text(encoding="utf-8-sig")))

    return apply


TREE = Path("ILSVRC", "Data", "CLS-LOC")
BROKEN_KAGGLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no solution": (lambda r: (r / "LOC_val_solution.csv").unlink(), "is not beside ILSVRC/"),
    "image not in it": (
        lambda r: put(r / TREE / "val" / "ILSVRC2012_val_00000009.JPEG"),
        "LOC_val_solution.csv does not say the class of ILSVRC2012_val_00000009 in .*val",
    ),
    "two files of an image": (
        lambda r: put(r / TREE / "val" / "ILSVRC2012_val_00000004"),
        "has ILSVRC2012_val_00000004.* and ILSVRC2012_val_00000004.*, one image in .*: remove one",
    ),
    "image missing": (
        lambda r: (r / TREE / "val" / "ILSVRC2012_val_00000004.JPEG").unlink(),
        "val lacks ILSVRC2012_val_00000004, which .*LOC_val_solution.csv names",
    ),
    "no val": (
        lambda r: (r / TREE / "val").rename(r / "elsewhere"), "val is missing, but .*solution.csv",
    ),
    "unknown class": (
        lines(lambda t: t.replace(WNIDS[2], "n09999999")), "train lacks: n09999999",
    ),
    "two classes": (
        lines(lambda t: t + f"ILSVRC2012_val_00000001,{WNIDS[0]} 1 2 3 4\n"),
        f"ILSVRC2012_val_00000001 is of class {WNIDS[3]} and of {WNIDS[0]}",
    ),
    "empty class": (
        lines(lambda t: t + "ILSVRC2012_val_00000001,\n"), "no class for ILSVRC2012_val_00000001",
    ),
    "half a row": (lines(lambda t: t + "ILSVRC2012_val_00000001\n"), "no class for ILSVRC"),
    "other columns": (
        lines(lambda t: t.replace("PredictionString", "Label")),
        "lacks the columns PredictionString",
    ),
    "file beside classes": (
        lambda r: put(r / TREE / "train" / "a.JPEG"), "files beside its class folders: a.JPEG",
    ),
    "folder beside train": (
        lambda r: put(r / TREE / "train2" / "a.JPEG"), "has train2 beside train and val",
    ),
    "empty train class": (
        lambda r: (r / TREE / "train" / "n03").mkdir(), "train/n03 is an empty class",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_KAGGLE)
def test_a_kaggle_tree_that_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    spoil, message = BROKEN_KAGGLE[case]
    kaggle(tmp_path / "a")
    spoil(tmp_path / "a")
    with pytest.raises(SourceError, match=message):
        listing(tmp_path / "a", tmp_path / "index")


# Tiny-ImageNet --------------------------------------------------------------------------------


def tiny(root: Path) -> dict[str, tuple[int, bytes]]:
    """The tree as it unpacks; what should be found in it."""
    expected = {}
    for label, wnid in enumerate(WNIDS):
        for number in (2, 10):
            name = f"{wnid}_{number}.JPEG"
            data = put(root / "train" / wnid / "images" / name)
            expected[f"train/{wnid}/{name}"] = (label, data)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_2.JPEG\t0\t0\t62\t62\n")
    rows = []
    for number in range(6):
        wnid = WNIDS[-1 - number % 4]
        data = put(root / "val" / "images" / f"val_{number}.JPEG")
        expected[f"val/{wnid}/val_{number}.JPEG"] = (WNIDS.index(wnid), data)
        rows.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    put(root / "test" / "images" / "test_0.JPEG")
    (root / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    (root / "words.txt").write_text(
        "n00001740\tentity\n" + "".join(f"{w}\tname of {w}, or so\n" for w in WNIDS[1:])
    )
    return expected


@pytest.mark.parametrize("named", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_is_read_as_it_unpacks(
    named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = tiny(tmp_path / "a" / "tiny-imagenet-200")
    found = listing(tmp_path / "a" / named, tmp_path / "index")
    assert found.layout == "tiny-imagenet"
    assert found.summary.classes == list(WNIDS)
    assert found.summary.names == [WNIDS[0], *(f"name of {wnid}, or so" for wnid in WNIDS[1:])]
    assert content(found) == expected
    assert "test has no labels: left out" in caplog.text


def sort_val(root: Path, form: str, keep_images: bool = True) -> None:
    """Into folders of classes, as scripts do it."""
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        folder = root / form.format(wnid)
        folder.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(folder / name)
    if not keep_images:
        (root / "val" / "images").rmdir()


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize(
    ("form", "keep_images"),
    [("val/{}/images", False), ("val/{}", True), ("val/{}", False), ("val/images/{}", True)],
)
def test_tiny_imagenet_whose_val_people_have_sorted(
    form: str, keep_images: bool, annotated: bool, tmp_path: Path
) -> None:
    """The same ids in every form, boxes are no images."""
    root = tmp_path / "tiny-imagenet-200"
    expected = tiny(root)
    sort_val(root, form, keep_images)
    if not annotated:
        (root / "val" / "val_annotations.txt").unlink()
    found = listing(root, tmp_path / "index")
    assert found.layout == "tiny-imagenet"
    assert found.summary.classes == list(WNIDS)
    assert content(found) == expected


def test_tiny_imagenet_without_its_images_folders(tmp_path: Path) -> None:
    """All sorted as `<wnid>/<image>`, the boxes left where they were."""
    root = tmp_path / "a"
    expected = tiny(root)
    sort_val(root, "val/{}", keep_images=False)
    (root / "val" / "val_annotations.txt").unlink()
    for folder in (root / "train").iterdir():
        for image in (folder / "images").iterdir():
            image.rename(folder / image.name)
        (folder / "images").rmdir()
    assert content(listing(root, tmp_path / "index")) == expected


NOTES = Path("val", "val_annotations.txt")
BROKEN_TINY: dict[str, tuple[Callable[[Path], object], str]] = {
    "image not in it": (
        lambda r: put(r / "val" / "images" / "val_99.JPEG"),
        r"val_annotations.txt does not say the class of val_99.JPEG in",
    ),
    "image missing": (
        lambda r: (r / "val" / "images" / "val_3.JPEG").unlink(),
        r"lacks val_3.JPEG, which .*val_annotations.txt names",
    ),
    "no class": (lambda r: (r / NOTES).write_text("val_0.JPEG\n"), r"no class for val_0.JPEG"),
    "other wnids": (
        lambda r: (r / "wnids.txt").write_text("n1\n" + "\n".join(WNIDS)), "differ: n1",
    ),
    "no images": (
        lambda r: (r / "train" / WNIDS[2] / "images").rename(r / "val" / "x"), "is an empty class",
    ),
    "images beside images/": (
        lambda r: put(r / "train" / WNIDS[1] / "a.JPEG"), "has a.JPEG beside images/",
    ),
    "val was sorted otherwise": (
        lambda r: (r / "val" / "images").rename(r / "val" / WNIDS[0]),
        f"val_0.JPEG lies in the folder of {WNIDS[0]}, but .* says {WNIDS[3]}",
    ),
    "val was sorted and lacks an image": (
        lambda r: (sort_val(r, "val/{}"), (r / "val" / WNIDS[0] / "val_3.JPEG").unlink()),
        "val lacks val_3.JPEG, which .*val_annotations.txt names",
    ),
    "val was sorted in part": (
        lambda r: (sort_val(r, "val/{}"), put(r / "val" / "images" / "val_9.JPEG")),
        "beside them images/val_9.JPEG",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_TINY)
def test_a_tiny_tree_that_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    spoil, message = BROKEN_TINY[case]
    tiny(tmp_path / "a")
    spoil(tmp_path / "a")
    with pytest.raises(SourceError, match=message):
        listing(tmp_path / "a", tmp_path / "index")


# ImageNet-V2 ----------------------------------------------------------------------------------


def numbered(root: Path, numbers: list[int]) -> dict[str, tuple[int, bytes]]:
    return {f"val/{n}/{n:x}.jpeg": (n, put(root / str(n) / f"{n:x}.jpeg")) for n in numbers}


@pytest.mark.parametrize("named", ["imagenetv2-matched-frequency-format-val", ""])
def test_folders_of_v2_are_numbers_not_text(named: str, tmp_path: Path) -> None:
    """Sorted as text, 10 would be label 2."""
    expected = numbered(
        tmp_path / "a" / "imagenetv2-matched-frequency-format-val", [0, 1, 10, 2, *range(3, 10), 11]
    )
    found = listing(tmp_path / "a" / named, tmp_path / "index")
    assert found.layout == "imagenetv2"
    assert found.summary.classes == [str(n) for n in range(12)]
    assert content(found) == expected
    assert found.labels("val") == list(range(12)), "in the order of labels"


def test_v2_is_known_by_its_numbers_and_says_which_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is not there leaves the labels of the others as they are."""
    numbers = [n for n in range(1000) if n not in (3, 500)]
    for number in numbers:
        (tmp_path / "v2" / str(number)).mkdir(parents=True)
        (tmp_path / "v2" / str(number) / "a.jpeg").write_bytes(b"x%d" % number)
    found = listing(tmp_path / "v2", tmp_path / "index")
    assert found.labels("val") == numbers
    assert len(found.summary.classes) == 1000
    assert "has no folders 3, 500" in caplog.text


def test_several_versions_of_v2_are_not_taken_for_classes(tmp_path: Path) -> None:
    for name in ("imagenetv2-top-images-format-val", "imagenetv2-threshold0.7-format-val"):
        numbered(tmp_path / "a" / name, [0, 1])
    with pytest.raises(SourceError, match="name one of them"):
        listing(tmp_path / "a", tmp_path / "index")


@pytest.mark.parametrize("inside", ["train", ""])
def test_few_numbers_are_classes_to_train_on(inside: str, tmp_path: Path) -> None:
    """MNIST as image files has folders 0 to 9 as well."""
    numbered(tmp_path / "a" / inside, list(range(10)))
    found = listing(tmp_path / "a", tmp_path / "index")
    assert found.layout == "class-folders"
    assert found.labels("train") == list(range(10))


# class folders --------------------------------------------------------------------------------


def test_class_folders_have_names_where_a_file_beside_train_knows_them(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "a", {"train": 1, "val": 1}, 2)
    assert listing(root, tmp_path / "i1").summary.names is None
    (root / "words.txt").write_text("n1\tsomething else\n")
    assert listing(root, tmp_path / "i2").summary.names is None
    (root / "LOC_synset_mapping.txt").write_text("class_1 the first, or so\n\nn1\n")
    found = listing(root, tmp_path / "i3")
    assert found.layout == "class-folders"
    assert found.summary.classes == ["class_0", "class_1"]
    assert found.summary.names == ["class_0", "the first, or so"]


@pytest.mark.parametrize("split", ["", "train"])
def test_a_source_one_level_too_high_is_not_one_class(split: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "root" / split / "photos" / name
        folder.mkdir(parents=True)
        (folder / "0.jpg").write_bytes(picture())
    with pytest.raises(SourceError, match="one class, photos, of folders alone: a, b") as caught:
        listing(tmp_path / "root", tmp_path / "index")
    assert f"--source {tmp_path / 'root' / split / 'photos'}" in str(caught.value)


def test_a_source_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError, match="neither a folder nor a regular file"):
        recognise(tmp_path / "fifo")


def test_a_folder_that_is_nothing_is_told_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SourceError) as caught:
        listing(tmp_path, tmp_path.with_name("index"))
    for layout in ("cifar-python", "cifar-binary", "idx", "parquet", "kaggle", "tiny-imagenet"):
        assert f"  {layout}: " in str(caught.value)


def test_a_link_loop_is_named_where_the_source_is_a_link_itself(tmp_path: Path) -> None:
    real = write_class_folders(tmp_path / "real", {"train": 2, "val": 1})
    loop = real / "train" / "class_0" / "again"
    loop.symlink_to(real / "train", target_is_directory=True)
    (tmp_path / "link").symlink_to(real, target_is_directory=True)
    for root in (real, tmp_path / "link"):
        with pytest.raises(SourceError, match="class_0/again links to a folder that it lies in"):
            listing(root, tmp_path / f"index-{root.name}")
