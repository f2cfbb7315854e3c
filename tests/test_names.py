"""Names that are not UTF-8, and pipes where files are expected: refused before any work."""

import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import SourceError
from tests.conftest import SUB4, spectral, spectral_here, write_class_folders
from tests.listing import listing
from tests.test_prepare import TOY

BAD = "caf\udce9"  # as Python has the byte 0xe9, an é of Latin-1
SHOWN = r"caf\xe9"


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 40, 40)).save(file, "JPEG")
    return file.getvalue()


def folders(root: Path) -> Path:
    return write_class_folders(root / "source", {"train": 3, "val": 1})


def an_image(root: Path) -> Path:
    source = folders(root)
    (source / "train/class_1/000.jpg").rename(source / f"train/class_1/{BAD}.jpg")
    return source


def an_empty_folder(root: Path) -> Path:
    source = folders(root)
    (source / f"train/class_1/{BAD}").mkdir()
    return source


def an_empty_class(root: Path) -> Path:
    source = folders(root)
    for split in ("train", "val"):
        (source / split / BAD).mkdir()
    (source / "train" / BAD / "0.jpg").write_bytes(jpeg())
    return source


def the_source(root: Path) -> Path:
    return folders(root).rename(root / BAD)


def behind_a_link(root: Path) -> Path:
    the_source(root)
    (root / "link").symlink_to(root / BAD)
    return root / "link"


def through_a_link(root: Path) -> Path:
    folders(root)
    (root / BAD).symlink_to(root / "source")
    return root / BAD


def tar(path: Path, members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def a_tar_member(root: Path) -> Path:
    for name in ("n01440764", "n01443537"):
        members = {f"{name}_{i}.JPEG": jpeg() for i in range(3)}
        if name == "n01443537":
            members[f"{BAD}.JPEG"] = jpeg()
        tar(root / f"tars/{name}.tar", members)
    return root / "tars"


def a_pax_member(root: Path) -> Path:
    members = {"a.JPEG": jpeg(), f"{'long' * 40}{BAD}.JPEG": jpeg()}
    tar(root / "tars/n01440764.tar", members, tarfile.PAX_FORMAT)
    return root / "tars"


def a_tar(root: Path) -> Path:
    tar(root / "tars/a.tar", {"x.JPEG": jpeg()})
    tar(root / f"tars/{BAD}.tar", {"x.JPEG": jpeg()})
    return root / "tars"


def a_tar_within(root: Path) -> Path:
    inner = tar(root / "inner.tar", {"x.JPEG": jpeg()}).read_bytes()
    return tar(root / "whole/winter21_whole.tar", {"n01440764.tar": inner, f"{BAD}.tar": inner})


def a_webdataset_key(root: Path) -> Path:
    members: dict[str, bytes] = {}
    for key in ("0", BAD):
        members |= {f"{key}.jpg": jpeg(), f"{key}.cls": b"0"}
    return tar(root / "wds/train-000000.tar", members).parent


MAKERS = (
    an_image,
    an_empty_folder,
    an_empty_class,
    the_source,
    behind_a_link,
    through_a_link,
    a_tar_member,
    a_pax_member,
    a_tar,
    a_tar_within,
    a_webdataset_key,
)


@pytest.mark.parametrize("make", MAKERS)
def test_a_name_that_is_not_utf_8_is_named(make: Callable[[Path], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = spectral("prepare", "toy", "--source", make(tmp_path), *TOY, "--out", out)
    assert done.returncode == 1, done.stdout
    assert SHOWN in done.stderr
    assert "is not valid UTF-8: rename it" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.beton*"))


def test_an_output_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """By whoever reads it, too: it may have been moved there."""
    source, out = folders(tmp_path), tmp_path / BAD
    done = spectral("prepare", "toy", "--source", source, *TOY, "--out", out)
    assert not out.exists()
    assert spectral("prepare", "toy", "--source", source, *TOY, "--out", tmp_path).returncode == 0
    (tmp_path / SUB4).rename(out)
    for found in (done, spectral("inspect", out), spectral("verify", out)):
        assert found.returncode == 1
        assert (
            f"{SHOWN} is not valid UTF-8: rename it" in found.stderr
            or f"{SHOWN}/toy" in found.stderr
        )
        assert "Traceback" not in found.stderr


PIPES = (
    *("data_batch_1", "data_batch_1.bin", "cifar-10-python.tar.gz", "train-images-idx3-ubyte.gz"),
    *("train-00000.parquet", "train-000000.tar", "n01440764.tar", "ILSVRC2012_img_train.tar"),
    *("ILSVRC2012_devkit_t12.tar.gz", "winter21_whole.tar.gz", "words.txt", "wnids.txt"),
    *("LOC_val_solution.csv", "val_annotations.txt", "0.jpg"),
)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.timeout(60, method="thread")  # a signal does not end the opening of a pipe in Arrow
def test_a_pipe_where_a_file_is_expected_is_never_read(alone: bool, tmp_path: Path) -> None:
    """Nobody writes to it: to open it would take for ever."""
    for name in PIPES:
        for inner in ("", "train", "val", "class_0"):
            root = tmp_path / name / (inner or "top")
            if not alone:
                write_class_folders(root, {"train": 1, "val": 1})
            (root / inner).mkdir(parents=True, exist_ok=True)
            os.mkfifo(root / inner / name)
            listed = Path(tempfile.mkdtemp(dir=tmp_path))
            try:
                found = listing(root, listed).summary.rows
            except SourceError:
                continue
            assert (found, alone, inner) == (6, False, ""), name  # beside train/ and val/


def test_a_time_limit_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """No image would ever be too late."""
    done = spectral_here("prepare", "x", "--source", tmp_path, "--image-timeout", "nan")
    assert done.returncode == 2
    assert "--image-timeout': nan is no number" in done.stderr
