"""An image that hangs, crashes or exhausts its worker costs itself, and not the run."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import WorkerError
from pipeline.sources.index import Place
from pipeline.stage import run
from pipeline.stage.blame import Job, Verdicts, ended, out_of_time
from pipeline.stage.messages import Task
from pipeline.stage.shared import READING
from tests.conftest import ROOT, SUB4, Done, spectral, spectral_here, write_class_folders
from tests.test_prepare import TOY, children, wait_until
from tests.test_restart import Cut

pytestmark = pytest.mark.processes

# Loaded by every Python that finds it on its path: a file that ends in a word does to its decoder
# what damaged files do. With REFUSE they are refused instead, as any file that cannot be decoded.
HOOK = """
import os
import sys
if os.environ.get("HOOK") == "OLD":
    import pipeline.format.zstd
    pipeline.format.zstd._PARAMETERS = {9999: 1}  # that libzstd does not know
elif os.environ.get("HOOK") == "DIE" and "--multiprocessing-fork" in sys.argv:
    os._exit(5)
elif os.environ.get("HOOK") == "SLEEP":
    import time
    import pipeline.stage.pool
    pipeline.stage.pool.START_SECONDS = 2
    if "--multiprocessing-fork" in sys.argv:
        time.sleep(1000)
elif os.environ.get("HOOK", "").startswith("STALL"):  # as of a network disk that is gone
    import pipeline.progress
    from pipeline.sources.containers.gzip import Gunzip
    from pipeline.sources.scan import Scan
    from pipeline.sources.reading import Feeder
    pipeline.progress.PATIENCE = 0.5
    _, doing, number = os.environ["HOOK"].split()
    kind, name = {"LOOK": (Gunzip, "read"), "LIST": (Scan, "add"), "READ": (Feeder, "read")}[doing]
    never, real, calls = os.pipe(), getattr(kind, name), iter(range(100))

    def wait(*args, **options):
        if next(calls) >= int(number):
            os.read(never[0], 1)
        return real(*args, **options)

    setattr(kind, name, wait)
elif "HOOK" in os.environ:
    import ctypes
    import numpy
    import PIL.Image
    real = PIL.Image.open

    def open(file, *args, **options):
        word = bytes(file.getbuffer()[-8:]).strip(b"-")
        if word in (b"HANG", b"CRASH", b"BOMB", b"KILL") and os.environ["HOOK"] == "REFUSE":
            raise ValueError("refused")
        if word == b"HANG":
            os.write(2, b"hangs\\n")
            ctypes.PyDLL(None).sleep(1000)  # a loop in C that keeps Python's lock
        if word == b"CRASH":
            ctypes.string_at(0)
        if word == b"BOMB":
            taken = [numpy.empty(1 << 28, "u1") for _ in range(100)]
        if word == b"KILL":
            os.kill(os.getpid(), 9)
        return real(file, *args, **options)

    PIL.Image.open = open
"""
REASONS = {
    "HANG": "decoding took longer than 2 s",
    "CRASH": "the decoder crashed (SIGSEGV)",
    "BOMB": "needs more memory than 4.0 GB",
    "KILL": "its worker was killed (SIGKILL), as when memory runs out",
}
OPTIONS = (*TOY, "--image-timeout", 2)


@pytest.fixture
def hook(tmp_path: Path) -> dict[str, str]:
    """Variables with which images do what their last word says."""
    folder = tmp_path / "hook"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOOK)
    return {"HOOK": "DO", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def prepare(source: Path, out: Path, hook: dict[str, str], workers: int = 2) -> Done:
    """Here; the hook is in the workers."""
    where = ("--source", source, "--out", out, "--workers", workers)
    return spectral_here("prepare", "toy", *where, *OPTIONS, **hook)


def mark(source: Path, words: dict[str, str]) -> None:
    for name, word in words.items():
        with (source / name).open("ab") as file:
            file.write(word.rjust(8, "-").encode())


def content(folder: Path) -> tuple[dict[str, bytes], dict[str, Any], list[dict[str, Any]]]:
    """Shards, manifest and table without what depends on the reasons."""
    shards = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.beton")}
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["samples.parquet"], manifest["digest"]
    table = pq.read_table(folder / "samples.parquet").drop(["reason"]).to_pylist()
    return shards, manifest, table


def reasons(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    return {row["id"]: row["reason"] for row in rows if row["reason"] is not None}


def check(source: Path, out: Path, hook: dict[str, str], expected: dict[str, str]) -> None:
    """What is in `out` is what a run gives in which these images cannot be decoded."""
    assert reasons(out / SUB4) == expected
    other = out.with_name("refused")
    done = prepare(source, other, {**hook, "HOOK": "REFUSE"}, 1)
    assert done.returncode == 0, done.stderr
    assert set(reasons(other / SUB4)) == set(expected)
    assert content(out / SUB4) == content(other / SUB4)


def test_each_fault_costs_one_image(tmp_path: Path, hook: dict[str, str]) -> None:
    """Several in one task, in the first that is probed too; each is named when it is met."""
    source = write_class_folders(tmp_path / "source", {"train": 12, "val": 3})
    words = {f"train/class_{i % 3}/00{i}.jpg": word for i, word in enumerate(REASONS)}
    mark(source, words)
    done = prepare(source, tmp_path / "out", hook)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for name, word in words.items():
        assert f"{name}: {REASONS[word]}: tried again in a new process" in done.stderr
        assert f"{name}: {REASONS[word]}: left out" in done.stderr
    check(source, tmp_path / "out", hook, {name: REASONS[word] for name, word in words.items()})


def gz(source: Path, folder: Path) -> Path:
    """A .tar.gz of a tar for each class of the train split."""
    archive = folder / "whole.tar.gz"
    with tarfile.open(archive, "w:gz") as whole:
        for classes in sorted((source / "train").iterdir()):
            inner = folder / f"{classes.name}.tar"
            with tarfile.open(inner, "w") as tar:
                tar.add(classes, classes.name)
            whole.add(inner, inner.name)
    return archive


def test_images_that_the_parent_reads(tmp_path: Path, hook: dict[str, str]) -> None:
    """Their bytes lie where answers go, and larger ones in a pipe: they are sent once more."""
    source = write_class_folders(tmp_path / "source", {"train": 12})
    mark(source, {"train/class_1/002.jpg": "CRASH", "train/class_1/003.jpg": "KILL"})
    (source / "train/class_1/004.jpg").open("ab").write(bytes(1_000_000))
    archive = gz(source, tmp_path)
    done = prepare(archive, tmp_path / "out", hook)
    assert done.returncode == 0, done.stderr
    check(archive, tmp_path / "out", hook, {
        "train/class_1/002.jpg": REASONS["CRASH"], "train/class_1/003.jpg": REASONS["KILL"],
    })  # fmt: skip


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("LOOK 0", signal.SIGTERM),
        ("LIST 5", signal.SIGTERM),
        ("READ 0", signal.SIGINT),
        ("READ 40", signal.SIGTERM),
    ],
)
def test_a_read_of_the_parent_that_never_returns_is_named(
    tmp_path: Path, hook: dict[str, str], word: str, number: signal.Signals
) -> None:
    """When the source is recognised, listed, probed, and ahead of the workers, in another thread; a
    signal ends it.
    """
    source = write_class_folders(tmp_path / "source", {"train": 12})
    archive = gz(source, tmp_path)
    started = start(archive, tmp_path / "out", {**hook, "HOOK": f"STALL {word}"})
    assert started.stderr is not None
    while "has taken" not in (line := started.stderr.readline()):
        assert line, "it has ended"
    doing = {"LOOK": "looking at", "LIST": "listing", "READ": "reading"}[word.split()[0]]
    assert f"{doing} {archive} has taken" in line
    started.send_signal(number)
    asked = time.monotonic()
    _, error = started.communicate(timeout=30)
    assert time.monotonic() - asked < 5
    assert started.returncode in (75, 130)
    assert "run the same command again to go on" in error
    assert "Traceback" not in error


def begin(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends when its index is there."""

    def cut(*_: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(run, "write", cut)
        with pytest.raises(Cut):
            spectral_here("prepare", "toy", "--source", source, *OPTIONS, "--out", out)


def test_a_read_that_never_returns(
    tmp_path: Path, hook: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe has come to lie where an image was, since they were listed."""
    source = write_class_folders(tmp_path / "source", {"train": 12})
    begin(source, tmp_path / "out", monkeypatch)
    begin(source, tmp_path / "refused", monkeypatch)
    image = source / "train/class_2/005.jpg"
    before = image.parent.stat()
    image.unlink()
    os.mkfifo(image)
    os.utime(image.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = prepare(source, tmp_path / "out", hook)
    assert done.returncode == 0, done.stderr
    image.unlink()
    image.write_bytes(b"no image")
    os.utime(image.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    reason = "reading took longer than 2 s"
    assert f"train/class_2/005.jpg: {reason}: left out" in done.stderr
    check(source, tmp_path / "out", hook, {"train/class_2/005.jpg": reason})


def test_a_pipe_among_the_images_is_refused_before_any_work(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source", {"train": 2})
    os.mkfifo(source / "train/class_2/005.jpg")
    done = spectral_here("prepare", "toy", "--source", source, *OPTIONS, "--out", tmp_path)
    assert done.returncode == 1
    assert "train/class_2/005.jpg is no regular file" in done.stderr


def start(source: Path, out: Path, hook: dict[str, str]) -> subprocess.Popen[str]:
    words = ("prepare", "toy", "--source", source, *OPTIONS, "--out", out, "--workers", 2)
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *map(str, words)], cwd=ROOT, env={**os.environ, **hook},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("moment", "times"), [("hangs", 2), pytest.param("left out", 1, marks=pytest.mark.chaos)]
)
def test_killed_while_a_hanging_image_is_looked_for(
    tmp_path: Path, hook: dict[str, str], moment: str, times: int
) -> None:
    """While it is tried again, and when it is known. No worker is left behind, hanging as it may;
    a verdict is kept, and bytes are the same.
    """
    source = write_class_folders(tmp_path / "source", {"train": 12})
    mark(source, {"train/class_1/002.jpg": "HANG"})
    started = start(source, tmp_path / "out", hook)
    assert started.stderr is not None
    while times:
        line = started.stderr.readline()
        assert line, "it has ended"
        times -= moment in line
    workers = children(started.pid)
    assert workers
    started.kill()
    started.wait()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 10)
    started.stderr.close()
    done = prepare(source, tmp_path / "out", hook)
    assert done.returncode == 0, done.stderr
    assert ("tried again" in done.stderr) == (moment == "hangs")
    check(source, tmp_path / "out", hook, {"train/class_1/002.jpg": REASONS["HANG"]})


def test_a_worker_that_cannot_start_ends_the_run(tmp_path: Path, hook: dict[str, str]) -> None:
    """It says why, where it can: it is no error in an image, nor one of ours."""
    source = write_class_folders(tmp_path / "source", {"train": 2})
    for word, expected in (
        ("OLD", "is too old: 1.5.4 is needed"),
        ("DIE", "ended before it had started (exit status 5)"),
        ("SLEEP", "has not started within 2 s"),
    ):
        done = spectral(
            "prepare", "toy", "--source", source, "--out", tmp_path / "out", *OPTIONS,
            **{**hook, "HOOK": word},
        )  # fmt: skip
        assert done.returncode == 1
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert "bug" not in done.stderr


def test_a_machine_that_fails_is_laid_to_no_image(tmp_path: Path) -> None:
    """Reads that hang at one image after the other: after a few the run ends, none is blamed."""
    places = [Place(0, f"{i}.jpg", 0, 0) for i in range(9)]
    task = Task(0, places, [False] * 9, 9, ids=[f"train/a/{i}.jpg" for i in range(9)])
    gone = out_of_time(60, READING)
    with Verdicts(tmp_path) as verdicts:
        job = Job(task, 0)
        for image, trial in ((4, [0, 1, 2, 3, 5, 6, 7, 8, 4]), (0, [1, 2, 3, 5, 6, 7, 8, 4, 0])):
            job.lost(gone, image, verdicts)
            assert job.for_worker(verdicts).trial == trial
        job.lost(gone, 1, verdicts)
        with pytest.raises(WorkerError, match=r"at train/a/2.jpg: reading took longer than 60 s"):
            job.lost(gone, 2, verdicts)
        assert verdicts.among(places) == {}
    with Verdicts(tmp_path) as verdicts:
        job = Job(task, 0)
        for image in (4, 4, 5, 5, 6, 6, 7, 7, 8, 8):
            job.lost(ended(-11, 1), image, verdicts)
        again = job.for_worker(verdicts)
        assert again.trial == []
        assert again.refused == dict.fromkeys(range(4, 9), "the decoder crashed (SIGSEGV)")
    with Verdicts(tmp_path) as verdicts:
        assert verdicts.among(places) == again.refused
