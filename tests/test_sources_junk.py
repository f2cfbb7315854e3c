"""What systems leave among images is no image: in folders and in tars, and it is said."""

import gzip
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.sources import recognise
from pipeline.sources.junk import is_junk
from tests.listing import listing
from tests.test_sources_tar import jpegs, listed, packed, refused
from tests.test_sources_trees import put

LEFT = (
    "@eaDir/0.jpg/SYNOPHOTO_THUMB_XL.jpg", "Thumbs.db", ".DS_Store", "._0.jpg", "desktop.ini",
    "0.jpg:Zone.Identifier", "sub/__MACOSX/x.jpg", ".thumbs/0.jpg",
)  # fmt: skip
SAID = ("1 @eaDir", "1 Thumbs.db", "1 .DS_Store", "1 ._*", "1 desktop.ini", "1 __MACOSX")


def littered(folder: Path) -> None:
    for name in ("0.jpg", "sub/1.jpg", *LEFT):
        put(folder / name)


@pytest.mark.parametrize("inside", ["", "train"])
def test_in_class_folders(inside: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "a" / inside
    for name in ("cat", "dog"):
        littered(root / name)
    put(root / "@eaDir" / "cat" / "0.jpg")
    put(root / "__MACOSX" / "cat" / "0.jpg")
    put(root / "Thumbs.db")
    put(tmp_path / "a" / "@eaDir" / "0.jpg")
    found = listing(tmp_path / "a", tmp_path / "index")
    assert found.summary.classes == ["cat", "dog"]
    assert sorted(i.split("/", 2)[2] for i in found.rows) == ["0.jpg"] * 2 + ["sub/1.jpg"] * 2
    assert "left out, as they are no images: " in caplog.text
    for said in ("2 .DS_Store", "3 Thumbs.db", "3 __MACOSX", "2 hidden", "2 *:zone.identifier"):
        assert said in caplog.text


def test_in_tars_of_classes_and_beside_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, image = tmp_path / "tars", jpegs(1)[0]
    root.mkdir()
    content = packed({"n01/0.jpg": image} | {f"n01/{name}": b"x" for name in LEFT})
    (root / "n01.tar").write_bytes(content)
    (root / "all.tar").write_bytes(packed({"__MACOSX/n01.tar": b"x", "n01.tar": content}))
    assert list(listed(root / "all.tar", tmp_path / "1").images) == ["train/n01/0.jpg"]
    assert all(said in caplog.text for said in (*SAID[:-1], "2 __MACOSX"))
    (root / "all.tar").unlink()
    put(root / "@eaDir" / "n01.tar" / "x")
    put(root / "Thumbs.db")
    caplog.clear()
    assert list(listed(root, tmp_path / "2").images) == ["train/n01/0.jpg"]
    assert all(said in caplog.text for said in ("2 @eaDir", "2 Thumbs.db", "1 __MACOSX"))


def test_an_archive_on_its_own_is_found_beside_them(tmp_path: Path) -> None:
    root = tmp_path / "download"
    put(root / "@eaDir" / "x" / "y.jpg")
    put(root / ".DS_Store")
    inner = packed({"n01.tar": packed({"0.jpg": jpegs(1)[0]})})
    (root / "all.tar.gz").write_bytes(gzip.compress(inner))
    found = recognise(root)
    assert found.layout == "whole-tar"
    assert list(listed(found.root, tmp_path / "scan").images) == ["train/n01/0.jpg"]


@pytest.mark.parametrize("name", ["n02.tar", "ILSVRC2012_img_val.tar"])
def test_a_tar_that_is_a_link_to_nothing_is_not_left_out(name: str, tmp_path: Path) -> None:
    """A class, a shard or all of val would be missing."""
    (tmp_path / "tars").mkdir()
    first = "ILSVRC2012_img_train.tar" if "val" in name else "n01.tar"
    (tmp_path / "tars" / first).write_bytes(packed({"0.jpg": jpegs(1)[0]}))
    (tmp_path / "tars" / name).symlink_to("../blobs/abc")
    assert f"{name} is a broken link (to ../blobs/abc)" in refused(
        tmp_path / "tars", tmp_path / "scan"
    )


def test_a_name_that_only_holds_such_a_word_is_none_of_them() -> None:
    assert not any(map(is_junk, ("thumbs", "desktop.ini.jpg", "eaDir", "a.DS_Store.png", "icons")))


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (tarfile.LNKTYPE, "is a hard link, .*tar --hard-dereference"),
        (tarfile.SYMTYPE, "is a symbolic link, .*tar --dereference"),
        (tarfile.CHRTYPE, "is a device or a pipe"),
    ],
)
def test_what_is_no_plain_file_in_a_tar_comes_with_the_advice_that_helps(
    tmp_path: Path, kind: bytes, advice: str
) -> None:
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "n01.tar", "w") as tar:
        entry = tarfile.TarInfo("x.JPEG")
        entry.type, entry.linkname = kind, "y.JPEG"
        tar.addfile(entry)
    with pytest.raises(SourceError, match=advice):
        listed(tmp_path / "tars", tmp_path / "scan")


def test_the_advice_for_hard_links_is_what_gnu_tar_takes(tmp_path: Path) -> None:
    """Packed by the real program, as it is and as it is advised."""
    import subprocess

    folder = tmp_path / "n01"
    put(folder / "a.jpg")
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    (tmp_path / "tars").mkdir()
    command = ["tar", "-C", str(folder), "-cf", str(tmp_path / "tars" / "n01.tar")]
    subprocess.run([*command, "a.jpg", "b.jpg"], check=True)
    assert "--hard-dereference" in refused(tmp_path / "tars", tmp_path / "1")
    subprocess.run([*command, "--hard-dereference", "a.jpg", "b.jpg"], check=True)
    assert len(listed(tmp_path / "tars", tmp_path / "2").images) == 2
