"""`spectral prepare` killed for real, at any moment: the same command ends with the same bytes."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DamagedError
from pipeline.format import beton_writer, manifest
from pipeline.format.beton_writer import Mark
from pipeline.preparation import preparation
from pipeline.stage import journal, resume, run, samples
from pipeline.stage.journal import Journal, load, save
from pipeline.stage.owned import remove
from pipeline.stage.resume import State
from pipeline.stage.write import Shards
from tests.conftest import AS_ROOT, ROOT, SUB4, spectral_here
from tests.test_prepare import TOY, children, files_of, wait_until

pytestmark = pytest.mark.processes

SMALL = ("--splits", 4, "--size", 32)  # thousands of images a second
FORMS: dict[str, tuple[object, ...]] = {
    "sub4": SMALL,
    "sub36": ("--splits", 36, "--size", 336),
    "whole": ("--splits", 1, "--size", 256),
    "raw": ("--splits", 16, "--size", 224, "--codec", "raw", "--transform", "dct"),
}
VICTIMS = ("parent", "worker", "group")
# Loaded by every Python that finds it on its path: commits every tenth of a second
HOOK = """
import sys
if "--multiprocessing-fork" not in sys.argv:
    import pipeline.stage.journal
    pipeline.stage.journal.COMMIT_SECONDS = 0.1
"""


@pytest.fixture(scope="session")
def often(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which a run can be caught in the middle, though it is short."""
    folder = tmp_path_factory.mktemp("often")
    (folder / "sitecustomize.py").write_text(HOOK)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def words(source: Path, out: Path, form: str, workers: int) -> list[str]:
    options = ("prepare", "many", "--source", source, *FORMS[form], "--out", out)
    return [*map(str, options), "--workers", str(workers)]


def start(words: list[str], often: dict[str, str]) -> subprocess.Popen[str]:
    """In a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *words], cwd=ROOT, env={**os.environ, **often},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def rows_done(out: Path) -> int:
    """Rows that the journal says are finished."""
    with suppress(FileNotFoundError, StopIteration):
        state = load(next(out.glob("many/*/journal")) / "state")
        return int(state["tally"]["rows"]) if state else 0
    return 0


def ready(pid: int) -> list[int]:
    """Workers that have started: they have a limit of memory."""
    limits = {child: resource.prlimit(child, resource.RLIMIT_AS)[0] for child in children(pid)}
    return [child for child, limit in limits.items() if limit != resource.RLIM_INFINITY]


def kill(started: subprocess.Popen[str], victim: str) -> None:
    """SIGKILL to the parent, to one worker, or to the whole process group, unless it has ended."""
    if victim == "worker":
        wait_until(lambda: started.poll() is not None or bool(ready(started.pid)))
    if started.poll() is not None:
        return
    if victim == "worker":
        os.kill(random.choice(ready(started.pid)), signal.SIGKILL)
    elif victim == "group":
        os.killpg(started.pid, signal.SIGKILL)
    else:
        started.kill()


def wait_for_rows(started: subprocess.Popen[str], out: Path, rows: int) -> None:
    """Until both workers live, and the journal has come so far; or until it has ended."""
    wait_until(
        lambda: (
            started.poll() is not None
            or (len(children(started.pid)) == 2 and rows_done(out) >= rows)
        ),
        120,
    )


def chaos(source: Path, out: Path, form: str, kills: int, often: dict[str, str]) -> None:
    """Kill a run again and again, at places spread over all of it; then let it end."""
    draw = random.Random(sum(form.encode()))
    total = sum(path.is_file() for path in source.rglob("*"))
    for i in range(kills):
        target = int(0.8 * total * (i + draw.random()) / kills)
        status = 0
        while status == 0:  # on a busy machine it may end before we look: once more, from the start
            started = start(words(source, out, form, 2), often)
            wait_for_rows(started, out, target)
            time.sleep(draw.uniform(0, 0.2))
            done, victim = rows_done(out), VICTIMS[i % 3]
            kill(started, victim)
            if victim == "worker":  # is replaced, so that the run goes on
                wait_for_rows(started, out, done + 1)
                kill(started, "parent")
            _, error = started.communicate(timeout=60)
            assert "Traceback" not in error
            if (status := started.returncode) == 0:
                shutil.rmtree(out)
        assert status == -signal.SIGKILL, error
        assert rows_done(out) >= done
    done = rows_done(out)
    last = spectral_here(*words(source, out, form, 2))
    assert last.returncode == 0, last.stderr
    assert done
    assert f"resuming after {done} of " in last.stderr


def check(source: Path, out: Path, form: str, kills: int, often: dict[str, str]) -> None:
    """Kills on one side, an undisturbed run with another number of workers on the other."""
    chaos(source, out / "killed", form, kills, often)
    whole = spectral_here(*words(source, out / "whole", form, 1))
    assert whole.returncode == 0, whole.stderr
    (killed,), (undisturbed,) = (out / "killed/many").iterdir(), (out / "whole/many").iterdir()
    assert files_of(killed) == files_of(undisturbed)
    assert spectral_here("verify", killed).returncode == 0
    counts = manifest.load(killed).counts
    assert sum(c["quarantined"] for c in counts.values()) == 3


def test_three_kills(many: Path, often: dict[str, str], tmp_path: Path) -> None:
    """The short form, of the parent, a worker, all; `make chaos` has forty."""
    check(many, tmp_path, "sub4", 3, often)


@pytest.mark.chaos
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.timeout(1200)
def test_ten_kills_of_each_form(
    many: Path, often: dict[str, str], tmp_path: Path, form: str
) -> None:
    check(many, tmp_path, form, 10, often)


def small(source: Path, out: Path) -> list[object]:
    return ["prepare", "toy", "--source", source, *TOY, "--out", out, "--workers", 1]


class Cut(BaseException):
    """Ends a run as a kill would, as far as files are concerned."""


def _cut(*args: object) -> None:
    raise Cut


def _nth(function: Callable[..., object], n: int) -> Callable[..., object]:
    """`function`, cut off at its n-th call."""
    calls = iter(range(1, 1_000_000))
    return lambda *args, **named: _cut() if next(calls) == n else function(*args, **named)


@pytest.mark.parametrize(
    ("module", "name", "n"),
    [
        (beton_writer.BetonWriter, "finish", 3),
        (run, "publish", 1),
        (run, "publish", 6),
        (run, "publish", 13),
        (samples, "write", 1),
        (manifest.Manifest, "save", 1),
    ],
)
def test_cut_off_at_the_very_end(
    data: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    module: object, name: str, n: int,
) -> None:  # fmt: skip
    """Between the last image and the manifest there are few moments: each of them is tried."""
    with monkeypatch.context() as patch:
        patch.setattr(module, name, _nth(getattr(module, name), n))
        with pytest.raises(Cut):
            spectral_here(*small(source, tmp_path))
    assert not (tmp_path / "toy" / "sub4-s32-calib0.2" / "manifest.json").exists()
    done = spectral_here(*small(source, tmp_path))
    assert done.returncode == 0, done.stderr
    folder = "toy/sub4-s32-calib0.2"
    assert files_of(tmp_path / folder) == files_of(data / folder)


def test_the_journal_drops_what_a_crash_cut_off(tmp_path: Path) -> None:
    """A torn last record is dropped, and one whose bytes were never written, with all behind."""
    path = tmp_path / "journal"
    journal = Journal(path)
    records = [{"n": i, "text": "é" * i} for i in range(5)]
    for record in records:
        journal.append(record)
    journal.close()
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        journal = Journal(path)
        whole = content[:end].count(b"\n")
        assert list(journal.read()) == records[:whole]
        journal.append({"again": 1})
        assert list(journal.read()) == [*records[:whole], {"again": 1}]
        journal.close()
    path.write_bytes(content[:30] + bytes(10) + content[40:])
    journal = Journal(path)
    assert len(list(journal.read())) < 5
    journal.close()


def test_a_digit_that_has_changed_is_not_read(tmp_path: Path) -> None:
    """Though what is left is a record still: in a journal, and in what is written whole."""
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append({"n": 1}, {"n": 2}, {"n": 3})
    path.write_bytes(path.read_bytes().replace(b'"n":2', b'"n":7'))
    assert list(journal.read()) == [{"n": 1}]
    journal.close()
    save(tmp_path / "state", {"rows": 10})
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes().replace(b"10", b"90"))
    with pytest.raises(DamagedError, match="state is not what was written"):
        load(tmp_path / "state")


def test_a_long_run_leaves_a_state_as_small_as_a_short_one(tmp_path: Path) -> None:
    """A run of a day makes 80,000 notes. What is added to: 20 bytes a piece, 8 an image."""
    prep = preparation("any", 36, size=36)
    begun, digest, sizes = ("0" * 32, "1" * 32), bytes(range(16)), []
    with closing(State(tmp_path, prep)) as state:
        for n in range(50):
            state.add(np.full((100, 2), n, np.int32), [(n, "bad")], replace(state.tally, rows=n))
            mark = Mark(n * 1000, n * 1_000_000, n * 1_000_000, begun, (digest, digest * 2))
            state.keep(state.describe({f"train/{k}": mark for k in range(36)}))
            sizes.append((tmp_path / "state").stat().st_size)
    assert max(sizes) - sizes[1] < 36 * 20
    assert (tmp_path / "digests").stat().st_size == 50 * 36 * 3 * 20
    assert (tmp_path / "outcomes").stat().st_size == 50 * 100 * 8
    with closing(State(tmp_path, prep)) as state:
        assert (state.tally.rows, state.reasons) == (49, dict.fromkeys(range(50), "bad"))
        assert state.marks["train/7"] == replace(mark, digests=(digest * 50, digest * 100))
        assert state.outcomes.read(4321, 1).tolist() == [(43, 43)]
    reasons = tmp_path / "reasons.jsonl"
    whole = reasons.read_bytes()
    os.truncate(reasons, len(whole) - 1)
    with pytest.raises(
        DamagedError, match=r"reasons\.jsonl is not what was written: .*--overwrite"
    ):
        State(tmp_path, prep)
    reasons.write_bytes(whole)
    with (tmp_path / "digests").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(DamagedError, match=r"digests is not what was written: .*--overwrite"):
        State(tmp_path, prep)


def test_everything_is_on_the_disk_before_it_is_noted(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a note may not say more than there is: files are synced before it, names
    before files are published. Seen on the calls that the run makes.
    """
    unsynced: dict[int, str] = {}
    moments: list[tuple[str, list[str]]] = []

    def inode(fd: int) -> int:
        return os.fstat(fd).st_ino

    def spied(function: Callable[..., object], see: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            see(*args)
            return function(*args, **options)

        return call

    def renamed(path: Path, target: Path) -> None:
        moments.append((target.name, sorted(unsynced.values())))
        unsynced[path.parent.stat().st_ino] = f"{path.parent.name}/"

    def wrote(fd: int, *_: object) -> None:
        unsynced[inode(fd)] = Path(f"/proc/self/fd/{fd}").readlink().name

    def synced(fd: int) -> None:
        unsynced.pop(inode(fd), None)

    monkeypatch.setattr(journal, "COMMIT_SECONDS", 1000)  # the last note alone, in this thread
    monkeypatch.setattr(os, "pwrite", spied(os.pwrite, wrote))
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, spied(getattr(os, name), synced))
    for name in ("replace", "rename"):
        monkeypatch.setattr(Path, name, spied(getattr(Path, name), renamed))
    assert spectral_here(*small(source, tmp_path)).returncode == 0
    names = [name for name, _ in moments]
    first = names.index("shard_00.beton")
    assert names[first - 2 : first] == ["state", "state"]  # all is written; all is whole
    assert [left for _, left in moments[first - 2 : first + 1]] == [[], [], []]
    assert names[-1] == "manifest.json"
    assert moments[-1][1] == []


@pytest.mark.parametrize("n", [1, 2])
def test_cut_off_while_a_repacked_source_is_indexed_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """The same images at other places in a tar: where they lie is looked up anew, at any moment."""
    root, out = tmp_path / "tars", tmp_path / "out"
    root.mkdir()
    pack(root, source, "old")
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "sync", _cut)
        with pytest.raises(Cut):
            spectral_here(*small(root, out))
    pack(root, source, "a_longer_name")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", _nth(Path.replace, n))
        with pytest.raises(Cut):
            spectral_here(*small(root, out))
    done = spectral_here(*small(root, out))
    assert done.returncode == 0, done.stderr
    assert spectral_here(*small(root, tmp_path / "at once")).returncode == 0
    assert files_of(out) == files_of(tmp_path / "at once")


def pack(root: Path, source: Path, folder: str) -> None:
    """A tar for each class of the train split; its images in `folder`."""
    for path in (source / "train").iterdir():
        with tarfile.open(root / f"{path.name}.tar", "w") as tar:
            tar.add(path, folder)


def test_other_options_than_those_that_it_was_begun_with_are_refused(
    many: Path, often: dict[str, str], tmp_path: Path
) -> None:
    """Another source, or libraries that give other bytes; --overwrite starts over."""
    started = start(words(many, tmp_path, "sub4", 2), often)
    wait_until(lambda: rows_done(tmp_path) > 0, 60)
    kill(started, "parent")
    started.communicate()
    other = spectral_here(*words(many / "train", tmp_path, "sub4", 2))
    assert other.returncode == 1
    assert f"source was {many}, now it is {many / 'train'}" in other.stderr
    (many / "train" / "class_0" / "more.jpg").write_bytes(b"no image")
    try:
        changed = spectral_here(*words(many, tmp_path, "sub4", 2))
        assert changed.returncode == 1
        assert "3753 images then, 3754 images now" in changed.stderr
    finally:
        (many / "train" / "class_0" / "more.jpg").unlink()
    same = spectral_here(*words(many, tmp_path, "sub4", 2))  # the folder's date differs, no more
    assert same.returncode == 0, same.stderr
    assert "resuming after" in same.stderr


def test_overwrite_takes_the_manifest_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off anywhere, what is left of a finished directory is not taken for one."""
    shutil.copytree(data / SUB4, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(Path, "unlink", _nth(Path.unlink, 2))
    with pytest.raises(Cut):
        remove(tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_overwrite_starts_over(data: Path, source: Path, tmp_path: Path) -> None:
    """What is there is removed first, finished or not."""
    folder = tmp_path / "toy" / "sub4-s32-calib0.2"
    assert spectral_here(*small(source / "train", tmp_path)).returncode == 0
    refused = spectral_here(*small(source, tmp_path))
    assert refused.returncode == 1
    assert "--overwrite" in refused.stderr
    assert spectral_here(*small(source, tmp_path), "--overwrite").returncode == 0
    assert files_of(folder) == files_of(data / "toy" / "sub4-s32-calib0.2")


def test_out_of_memory_in_a_worker_is_laid_to_no_image(
    many: Path, often: dict[str, str], tmp_path: Path
) -> None:
    """A real limit, set from outside on a worker that is at work: another one takes its place."""
    started = start([*words(many, tmp_path, "sub36", 2), "--limit", "1500"], often)
    wait_for_rows(started, tmp_path, 100)
    resource.prlimit(ready(started.pid)[0], resource.RLIMIT_AS, (1 << 20, 1 << 20))
    _, error = started.communicate(timeout=120)
    assert started.returncode == 0, error
    assert "needs more memory than 4.0 GB: tried again" in error
    assert "left out" not in error


def test_an_output_that_becomes_read_only_is_said_and_the_run_resumes(
    source: Path, data: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("40m")
    subprocess.run([*AS_ROOT, "mount", "-o", "remount,ro", str(disk)], check=True)
    done = spectral_here(*small(source, disk))
    assert done.returncode == 1
    assert "the file system is read-only" in done.stderr
    assert "Traceback" not in done.stderr
    subprocess.run([*AS_ROOT, "mount", "-o", "remount,rw", str(disk)], check=True)
    assert spectral_here(*small(source, disk)).returncode == 0
    folder = "toy/sub4-s32-calib0.2"
    assert files_of(disk / folder) == files_of(data / folder)


def test_verdicts_are_by_place_and_go_when_places_change(tmp_path: Path) -> None:
    """Else another image would be left out, of a source that was packed anew."""
    again = tmp_path / "again"
    again.mkdir()
    (again / "index.json").write_text("{}")
    (tmp_path / "verdicts.jsonl").write_text("of old places")
    resume._adopt(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "index.json"]
