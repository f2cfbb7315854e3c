"""Tars of every writer at hand: files lie where Python's tarfile finds them, too."""

import gzip
import os
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.sources.containers.tar import iter_members
from pipeline.sources.junk import junk_in
from tests.conftest import ROOT
from tests.test_sources_tar import member

# bsdtar of libarchive 3.6.2 on what `tree` makes, `bsdtar --format FORMAT -cf - class | gzip -9n`
BSDTAR = sorted((ROOT / "tests" / "data" / "bsdtar").glob("*.tar.gz"))
GNU = [
    ["--format=v7"],
    ["--format=ustar"],
    ["--format=oldgnu", "--sparse"],
    ["--format=gnu", "--sparse"],
    *(["--format=pax", "--sparse", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0")),
    ["--format=pax", "--pax-option=globexthdr.name=g,comment=for all"],
]
PYTHON = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tree(root: Path, *, long: bool = True) -> None:
    """Long and foreign names; and hidden ones, which are passed over whatever they are."""
    folder = root / "class"
    folder.mkdir()
    names = [b"a.jpg", b"z.jpg", "\u00e9t\u00e9 \u6f22.jpg".encode(), b"caf\xe9.jpg", b"x" * 90]
    if long:
        deep = Path("class", "d" * 150, "e" * 150)
        (root / deep).mkdir(parents=True)
        names += [b"x" * 120 + b".jpg", os.fsencode(deep.relative_to("class") / "b.jpg")]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(name[:7])
    (folder / "empty.jpg").touch()
    (folder / ".hidden").write_bytes(b"linked")
    (folder / ".hardlink").hardlink_to(folder / ".hidden")
    (folder / ".symlink").symlink_to("a.jpg")
    with (folder / ".sparse").open("wb") as file:  # 30 pieces: the old format needs more blocks
        for i in range(30):
            file.seek(i << 16)
            file.write(b"piece")
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (1, 1), follow_symlinks=False)


def told(path: Path) -> list[tuple[str, int, int]]:
    """By the standard library."""
    with tarfile.open(path) as tar:
        found = [(m.name, m.offset_data, m.size) for m in tar if m.isreg() and not junk_in(m.name)]
    assert len(found) > 4
    return found


def found(path: Path) -> list[tuple[str, int, int]]:
    with path.open("rb") as stream:
        return [(m.name, m.offset, m.size) for m in iter_members(stream, str(path))]


@pytest.mark.parametrize("options", GNU, ids=lambda options: "".join(options)[9:])
def test_gnu_tar(tmp_path: Path, options: list[str]) -> None:
    tree(tmp_path, long=options[0] not in ("--format=v7", "--format=ustar"))
    path = tmp_path / "a.tar"
    subprocess.run(["tar", *options, "-cf", path, "class"], cwd=tmp_path, check=True)
    assert found(path) == told(path)


@pytest.mark.parametrize("path", BSDTAR, ids=lambda path: path.name)
def test_bsdtar(tmp_path: Path, path: Path) -> None:
    unpacked = tmp_path / "a.tar"
    unpacked.write_bytes(gzip.decompress(path.read_bytes()))
    assert found(unpacked) == told(unpacked)


def test_there_are_archives_of_bsdtar() -> None:
    assert {path.name for path in BSDTAR} == {"gnutar.tar.gz", "pax.tar.gz", "ustar.tar.gz"}


@pytest.mark.parametrize("form", PYTHON)
def test_python(tmp_path: Path, form: str) -> None:
    tree(tmp_path, long=form != "ustar")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=PYTHON[form], pax_headers={"comment": "for all"}) as tar:
        tar.add(tmp_path / "class", "class")
    assert found(path) == told(path)


def test_sparse_files_and_links_are_named(tmp_path: Path) -> None:
    tree(tmp_path)
    path = tmp_path / "a.tar"
    for name, what in (("sparse", "a sparse file"), ("hardlink", "a hard link")):
        (tmp_path / "class" / f".{name}").rename(tmp_path / "class" / f"{name}.jpg")
        for form in ("gnu", "pax"):
            files = ["class/.hidden", f"class/{name}.jpg"]
            options = [f"--format={form}", "--sparse", "-cf", path]
            subprocess.run(["tar", *options, *files], cwd=tmp_path, check=True)
            with pytest.raises(SourceError, match=rf"class/{name}.jpg is {what}"):
                found(path)


# --- what lies ----------------------------------------------------------------------------------


def of_kind(kind: bytes, data: bytes) -> bytes:
    header = bytearray(member("it", len(data)))
    header[156:157] = kind
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data.ljust(-(-len(data) // 512) * 512, b"\0")


def record(word: str) -> bytes:
    """Of a pax header: it begins with its own length, of two digits."""
    return f"{len(word) + 4} {word}\n".encode()


A = member("a.jpg", 5) + b"bytes".ljust(512, b"\0")
END = bytes(1024)
LONG, PAX, GLOBAL = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE
HUGE = 1 << 94
LIES = {
    "a size beyond all": (A + member("b.jpg", HUGE) + END, 1024),
    "a pax size beyond all": (A + of_kind(PAX, record(f"size={HUGE}")) + A + END, 2048),
    "a pax size below 0": (A + of_kind(PAX, record("size=-5")) + A + END, 2048),
    "a pax size of letters": (A + of_kind(PAX, record("size=five")) + A + END, 2048),
    "a pax record of no length": (A + of_kind(PAX, b"0 size=5\n") + A + END, 1024),
    "a pax record that goes on": (A + of_kind(PAX, b"99 size=5\n") + A + END, 1024),
    "a pax record of many digits": (A + of_kind(PAX, b"9" * 5000) + A + END, 1024),
    "a long name beyond all": (A + member("b.jpg", HUGE)[:156] + b"L" + bytes(2048), 1024),
    "an empty long name": (A + of_kind(LONG, bytes(9)) + A + END, 1024),
    "a long name of nothing": (A + of_kind(LONG, b"name\0") + END, 2048),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_damage_with_its_offset_and_the_member_before(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "lies.tar"
    content, at = LIES[lie]
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        found(path)
    assert str(caught.value).startswith(f"{path} is damaged near byte {at:,}, behind a.jpg: ")
    assert str(caught.value).endswith("; download it again")


def test_a_chain_of_long_names_has_no_end_that_matters(tmp_path: Path) -> None:
    """tarfile calls itself for each and gives up with RecursionError."""
    path = tmp_path / "chain.tar"
    path.write_bytes(of_kind(LONG, b"first.jpg\0") + of_kind(LONG, b"x\0") * 3000 + A + END)
    assert found(path) == [("first.jpg", 1024 * 3001 + 512, 5)]


def test_the_first_word_on_a_member_counts_as_for_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "words.tar"
    everyone = of_kind(GLOBAL, record("path=global.jpg"))
    one, two = of_kind(PAX, record("path=one.jpg")), of_kind(LONG, b"two.jpg\0")
    path.write_bytes(everyone + one + two + A + two + one + A + two + A + A + A + END)
    assert found(path) == told(path)
    names = ["one.jpg", "two.jpg", "two.jpg", "global.jpg", "global.jpg"]
    assert [name for name, *_ in found(path)] == names


@pytest.mark.parametrize("packed", ["within", "outermost"])
@pytest.mark.parametrize("cut", [511, 700, 1023, 1030, 1536])
def test_an_archive_cut_anywhere_names_the_byte(tmp_path: Path, cut: int, packed: str) -> None:
    path = tmp_path / "cut.tar"
    content, start = (A + of_kind(LONG, b"b" * 300) + A + END)[:cut], 0
    if packed == "within":
        content, start = member("inner.tar", cut) + content.ljust(4096, b"\0"), 512
    path.write_bytes(content)
    with path.open("rb") as stream, pytest.raises(SourceError) as caught:
        list(iter_members(stream, "it", start, cut if start else None, Counter()))
    assert str(caught.value).startswith(f"it is cut short at byte {start + cut:,}: ")


def test_offsets_and_sizes_beyond_4_and_8_gib(tmp_path: Path) -> None:
    """By a base-256 size, and by a pax header; the disk holds a few blocks of each."""
    path = tmp_path / "long.tar"
    sizes = {"a.jpg": 5 << 30, "b.jpg": 9 << 30, "c.jpg": 9 << 30, "d.jpg": 3}
    expected, at = [], 0
    with path.open("wb") as file:
        for name, size in sizes.items():
            file.seek(at)
            if name == "c.jpg":
                at += file.write(of_kind(PAX, record(f"size={size}")) + member(name, 0))
            else:
                at += file.write(member(name, size))
            expected.append((name, at, size))
            at += -(-size // 512) * 512
        file.seek(at - 512)
        file.write(b"abc".ljust(512, b"\0") + END)
    assert found(path) == told_of(path) == expected
    with path.open("rb") as file:
        file.seek(expected[-1][1])
        assert file.read(3) == b"abc"


def told_of(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as tar:
        return [(entry.name, entry.offset_data, entry.size) for entry in tar]
