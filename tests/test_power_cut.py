"""A power cut at any moment of `spectral prepare`: what was not synced may be lost, and the same
command ends with the same bytes.

A real run is watched: before each sync, rename, removal and new folder, what its directory holds is
noted, and what of it has been synced: the content of files by fsync of the file, names by fsync of
their folder. A cut leaves either for each, or a mixture. Each such directory is made anew, and the
command is given again.
"""

import gzip
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.format import beton, beton_writer
from pipeline.stage import run
from pipeline.stage.journal import Commits
from pipeline.stage.owned import JOURNAL
from tests.conftest import spectral_here, write_class_folders
from tests.test_prepare import files_of
from tests.test_sources_tar import packed

SYNCS = ("fsync", "fdatasync")
CHANGES = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "ftruncate")
CUTS = ("all kept", "all lost", "names kept", "content kept", "torn")
BLOCK = 512  # bytes that a disk writes whole
FOLDER = "toy/sub4-s16-calib0.2"
Names = dict[int, dict[str, int]]  # of each folder, by inode: the inodes of what it holds
Content = dict[int, bytes]


@dataclass(frozen=True)
class Moment:
    """What the directory holds, and what of it has been synced; `before` an operation."""

    before: str
    names: Names
    content: Content
    synced_names: Names
    synced_content: Content


class Recorder:
    """Notes a `Moment` of `root` before each operation that matters to a power cut."""

    def __init__(self, root: Path) -> None:
        self.root, self.moments = root, list[Moment]()
        self.top = root.stat().st_ino
        self._names: Names = {}
        self._content: Content = {}
        self._lock = threading.RLock()  # commits are a thread's
        self._held: dict[int, int] = {}  # open files: so that no inode is given away again

    def around(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        """The same operation, noted."""

        def noted(*args: Any, **options: Any) -> Any:
            path = _path(args[0], options.get("dir_fd"))
            if not path.is_relative_to(self.root):
                return operation(*args, **options)
            with self._lock:
                names, content = self._look()
                synced = dict(self._names), dict(self._content)
                said = f"{name} {path.relative_to(self.root)}"
                self.moments.append(Moment(said, names, content, *synced))
                result = operation(*args, **options)
                if name in SYNCS:
                    self._synced(os.fstat(args[0]).st_ino, names, content)
            return result

        return noted

    def _synced(self, inode: int, names: Names, content: Content) -> None:
        if inode in names:
            self._names[inode] = names[inode]
        elif inode in content:
            self._content[inode] = content[inode]

    def _look(self) -> tuple[Names, Content]:
        names: Names = {}
        content: Content = {}
        for folder, folders, files in os.walk(self.root):
            inside = {name: self._hold(Path(folder) / name) for name in folders + files}
            names[Path(folder).stat().st_ino] = inside
            for name in files:
                size = os.fstat(self._held[inside[name]]).st_size
                content[inside[name]] = os.pread(self._held[inside[name]], size, 0)
        return names, content

    def _hold(self, path: Path) -> int:
        inode = path.stat().st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY)
        return inode

    def close(self) -> None:
        for fd in self._held.values():
            os.close(fd)


def _path(named: Any, folder: int | None) -> Path:
    """Of what is named by a path, or by an open file."""
    if isinstance(named, int):
        return Path(f"/proc/self/fd/{named}").readlink()
    return (_path(folder, None) if folder is not None else Path.cwd()) / named


@contextmanager
def recorded(root: Path) -> Iterator[Recorder]:
    """What this process does below `root`; worker processes write nothing there."""
    recorder = Recorder(root)
    with pytest.MonkeyPatch.context() as patched:
        for name in (*SYNCS, *CHANGES):
            patched.setattr(os, name, recorder.around(name, getattr(os, name)))
        yield recorder
    recorder.close()


def leave(moment: Moment, top: int, cut: str, target: Path, rng: random.Random) -> None:
    """Make what the cut leaves, at `target`."""

    def kept(kind: str) -> bool:
        return rng.random() < 0.5 if cut == "torn" else cut in ("all kept", f"{kind} kept")

    def make(inode: int, folder: Path) -> None:
        folder.mkdir()
        inside = (moment.names if kept("names") else moment.synced_names).get(inode, {})
        for name, child in inside.items():
            if child in moment.names or child in moment.synced_names:
                make(child, folder / name)
                continue
            synced = moment.synced_content.get(child, b"")
            live = moment.content.get(child, synced)
            found = (
                _torn(live, synced, rng) if cut == "torn" else live if kept("content") else synced
            )
            (folder / name).write_bytes(found)

    make(top, target)


def _torn(live: bytes, synced: bytes, rng: random.Random) -> bytes:
    """Some blocks as they were written last, some as they were synced, or never written."""
    size = rng.choice([len(live), len(synced)])
    both = [data[:size].ljust(size, b"\0") for data in (live, synced)]
    blocks = range(0, size, BLOCK)
    return b"".join(rng.choice(both)[at : at + BLOCK] for at in blocks)


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    """So that some are full, and their digests have to be on the disk."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (beton, beton_writer):
            patched.setattr(module, "PIECE", 1024)
        yield


@pytest.fixture(scope="module", params=["folders", pytest.param("gzip", marks=pytest.mark.chaos)])
def images(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """As class folders, or as one archive, of which the journal has an index of its own."""
    root = write_class_folders(tmp_path_factory.mktemp("images"), {"train": 10, "val": 3})
    (root / "train" / "class_1" / "bad.jpg").write_bytes(b"no image")
    if request.param == "folders":
        return root
    inner = {
        f"{folder.name}.tar": packed({path.name: path.read_bytes() for path in folder.iterdir()})
        for folder in sorted((root / "train").iterdir())
    }
    archive = tmp_path_factory.mktemp("archive") / "images.tar.gz"
    archive.write_bytes(gzip.compress(packed(inner), 1))
    return archive


def prepare(source: Path, out: Path) -> tuple[int, str]:
    options = ("--splits", 4, "--size", 16, "--calib", 0.2, "--workers", 1)
    done = spectral_here("prepare", "toy", "--source", source, *options, "--out", out)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def watched(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    """A run that commits after every few images, and what it has made."""
    out = tmp_path_factory.mktemp("watched")
    with recorded(out) as recorder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Commits, "maybe", Commits.last)
        patched.setattr(run, "chunk_images", lambda *_: 6)
        code, said = prepare(images, out)
    assert code == 0, said
    return recorder, out / FOLDER


def states(recorder: Recorder) -> list[tuple[str, Moment]]:
    """Every kind of cut at every moment, but those that leave what an earlier one has left."""
    seen, found = set(), []
    for moment in recorder.moments:
        for cut in CUTS:
            names = moment.names if cut in ("all kept", "names kept") else moment.synced_names
            kept = moment.content if cut in ("all kept", "content kept") else moment.synced_content
            left = (cut == "torn", repr(names), repr(sorted(kept.items())))
            if left not in seen:
                seen.add(left)
                found.append((cut, moment))
    return found


def check(
    cases: list[tuple[str, Moment]], recorder: Recorder, made: Path, images: Path, tmp_path: Path
) -> None:
    wanted = files_of(made)
    for i, (cut, moment) in enumerate(cases):
        out = tmp_path / str(i)
        leave(moment, recorder.top, cut, out, random.Random(i))
        left = sorted(p.relative_to(out).as_posix() for p in out.rglob("*"))
        code, said = prepare(images, out)
        where = f"cut {i}, {cut}, before {moment.before}: {left}\n{said}"
        assert code == 0, where
        assert files_of(out / FOLDER) == wanted, where
        shutil.rmtree(out)


def test_what_a_run_syncs_is_seen(watched: tuple[Recorder, Path]) -> None:
    """Else nothing would be lost in the tests below."""
    recorder, made = watched
    operations = {moment.before.split(" ")[0] for moment in recorder.moments}
    assert {"fsync", "fdatasync", "rename", "unlink", "mkdir"} <= operations
    last = recorder.moments[-1]
    assert any(last.synced_content.get(inode) != data for inode, data in last.content.items())
    states = [moment for moment in recorder.moments if moment.before.endswith("state.partial")]
    assert len(states) > 2 * 6  # synced and renamed, of some chunks and at the end
    assert made.is_dir()


def test_a_power_cut_loses_nothing_that_was_noted(
    watched: tuple[Recorder, Path], images: Path, tmp_path: Path
) -> None:
    """All that was not synced is lost, each time when names have just been synced: then what they
    name has to be there.
    """
    moments = watched[0].moments
    synced = (f"fsync {FOLDER}", f"fsync {FOLDER}/{JOURNAL}")
    cases = [("all lost", b) for a, b in pairwise(moments) if a.before in synced]
    assert len(cases) > 12
    check(cases[:5] + cases[-4:], *watched, images, tmp_path)  # the others are commits, too


def test_what_was_finished_is_still_there(watched: tuple[Recorder, Path], tmp_path: Path) -> None:
    """With the folders that it lies in; and so is what was noted on the way."""
    recorder, made = watched
    before = {moment.before: moment for moment in recorder.moments}
    done = before[f"rmdir {FOLDER}/{JOURNAL}"]
    noted = before[f"unlink {FOLDER}/train/shard_00.beton.sizes.partial"]
    for name, moment in (("done", done), ("noted", noted)):
        leave(moment, recorder.top, "all lost", tmp_path / name, random.Random(0))
    assert files_of(tmp_path / "done" / FOLDER).keys() >= files_of(made).keys()
    assert (tmp_path / "noted" / FOLDER / JOURNAL / "state").exists()


@pytest.mark.chaos
@pytest.mark.timeout(3000)
def test_a_power_cut_at_every_moment_loses_nothing_that_was_noted(
    watched: tuple[Recorder, Path], images: Path, tmp_path: Path
) -> None:
    check(states(watched[0]), *watched, images, tmp_path)
