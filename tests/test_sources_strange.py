"""What is no file, and files packed in a form that is not read: said in words, at once."""

import bz2
import io
import lzma
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pipeline.errors import SourceError
from pipeline.sources import recognise
from tests.conftest import spectral_here, write_class_folders
from tests.listing import listing, picture
from tests.test_prepare import TOY


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(path.parent)  # whose name may be too long for a socket
        try:
            made.bind(path.name)
        finally:
            os.chdir(before)


STRANGE: dict[str, Callable[[Path], None]] = {
    "is a broken link (to nowhere.jpg)": lambda path: path.symlink_to("nowhere.jpg"),
    "is no regular file but a character device": lambda path: path.symlink_to("/dev/null"),
    "is no regular file but a pipe": os.mkfifo,
    "is no regular file but a socket": a_socket,
}


def test_what_is_no_file_is_said_all_at_once(tmp_path: Path) -> None:
    """Of all classes, each by what it is: not one after the other, run by run."""
    source = write_class_folders(tmp_path / "source", {"train": 2, "val": 1})
    (source / "val" / "class_2" / "000.jpg").unlink()  # what stands there now is said, not this
    for number, (said, make) in enumerate(STRANGE.items()):
        place = ("train/class_0", "train/class_1", "train/class_2", "val/class_2")[number]
        path = source / place / f"{number}.jpg"
        make(path)
        alone = write_class_folders(tmp_path / str(number), {"train": 1})
        make(alone / "train" / "class_1" / f"{number}.jpg")
        found = spectral_here("prepare", "toy", "--source", alone, *TOY, "--out", tmp_path / "out")
        assert found.returncode == 1
        assert f"class_1/{number}.jpg {said}: remove" in found.stderr
    done = spectral_here("prepare", "toy", "--source", source, *TOY, "--out", tmp_path / "out")
    assert all(said in done.stderr for said in STRANGE), done.stderr
    for number in range(8):
        os.mkfifo(source / "train" / "class_2" / f"more{number}.jpg")
    done = spectral_here("prepare", "toy", "--source", source, *TOY, "--out", tmp_path / "out")
    assert "and 7 more: remove what is no image" in done.stderr


@pytest.mark.parametrize("name", ["n02.tar", "train-1.parquet"])
def test_a_device_in_place_of_a_tar_is_not_left_out(name: str, tmp_path: Path) -> None:
    tar(tmp_path / "tars" / "n01.tar")
    (tmp_path / "tars" / name).symlink_to("/dev/null")
    with pytest.raises(SourceError, match=f"{name} is no regular file but a character device"):
        listing(tmp_path / "tars", tmp_path / "scan")


def tar(path: Path) -> bytes:
    """A tar of images of a class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in ("a/0.jpg", "a/1.jpg"):
            data = picture()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path.read_bytes()


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.tar", data)
    return file.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "zip": zipped,
}


@pytest.mark.parametrize("form", PACKERS)
def test_a_tar_packed_in_another_form_is_said_to_be_one(form: str, tmp_path: Path) -> None:
    """Alone, alone in a folder, among others, under the name of a plain tar; by its head alone, as
    what follows here is nothing.
    """
    data = PACKERS[form](tar(tmp_path / "plain.tar"))[:64]
    places = ("a.tar.x", "alone/a.tar.x", "two/a.tar.x", "named/n01.tar", "all/winter21_whole.tar")
    for place in places:
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        os.truncate(path, 1 << 36)
    (tmp_path / "two" / "b.tar.x").write_bytes(data)
    for place in places:
        root = (tmp_path / place).parent if "/" in place else tmp_path / place
        with pytest.raises(SourceError) as caught:
            listing(root, tmp_path / "scan")
        said = str(caught.value)
        assert said.startswith(f"{tmp_path / place} is packed with {form}, which is not read"), said
        assert "unpack it" in said


def test_a_packed_file_beside_what_is_read_stands_in_nobodys_way(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source", {"train": 1})
    (source / "old.tar.xz").write_bytes(lzma.compress(b"x"))
    assert recognise(source).layout == "class-folders"
