"""Signals to `spectral prepare` in each of its phases: a sentence, then the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, spectral_here, write_class_folders
from tests.test_prepare import TOY, children, files_of
from tests.test_sources_arrays import PYTHON, Cifar

pytestmark = pytest.mark.processes

# Loaded by every Python that finds it on its path: says when a function of the parent is called
# for the n-th time, and makes that call last a while
HOOK = """
import os, sys
if "--multiprocessing-fork" not in sys.argv and "PHASE" in os.environ:
    import importlib, time
    module, names, n = os.environ["PHASE"].split(":")
    place = importlib.import_module(module)
    *classes, name = names.split(".")
    for inner in classes:
        place = getattr(place, inner)
    real, calls = getattr(place, name), iter(range(1, 1_000_000))

    def slow(*args, **options):
        if next(calls) != int(n):
            return real(*args, **options)
        os.write(2, b"here\\n")
        time.sleep(0.2)
        result = real(*args, **options)
        time.sleep(0.2)
        return result

    setattr(place, name, slow)
"""
PHASES = {
    "importing": "pipeline.preparation:preparation:1",
    "listing": "pipeline.sources.scan:Scan.add:5",
    "splits": "pipeline.stage.resume:assign:1",
    "saving the index": "pipeline.sources.index:Index.save:1",
    "starting workers": "pipeline.stage.pool:Pool._start:2",
    "probing": "pipeline.stage.run:probe:1",
    "the probe's answer": "pipeline.stage.run:readable:1",
    "writing": "pipeline.stage.write:Shards.append:2",
    "committing": "pipeline.stage.resume:State.keep:1",
    "finishing shards": "pipeline.format.beton_writer:BetonWriter.finish:2",
    "publishing": "pipeline.stage.run:publish:3",
    "the table": "pipeline.stage.samples:write:1",
    "concluding": "pipeline.stage.prepare:conclude:1",
    "the manifest": "pipeline.format.manifest:Manifest.save:1",
    "removing the journal": "pipeline.stage.prepare:remove_journal:1",
    "reporting": "pipeline.inspection.inspect:lines:1",
}
SHORT = ("listing", "starting workers", "writing", "publishing")  # the others: `make chaos`
ENDS = {
    signal.SIGTERM: (75, "Error: stopped by SIGTERM; run the same command again to go on"),
    signal.SIGINT: (130, "Error: interrupted; run the same command again to go on"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source, and what an undisturbed run makes of it."""
    root = tmp_path_factory.mktemp("whole")
    source = write_class_folders(root / "source", {"train": 12, "val": 3})
    assert spectral_here(*words(source, root / "out")).returncode == 0
    return source, root / "out"


def words(source: Path, out: Path) -> list[str]:
    options = ("prepare", "toy", "--source", source, *TOY, "--out", out, "--workers", 2)
    return [*map(str, options)]


def stop(command: list[str], hook: Path, phase: str, number: signal.Signals, wait: float) -> None:
    """Run it, stop it so many seconds after the phase has begun, and see how it ends."""
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    path = f"{hook}{os.pathsep}{ROOT}"
    started = subprocess.Popen(
        [sys.executable, "-m", "cli", *command], cwd=ROOT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "PHASE": phase},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert started.stderr is not None
    while (line := started.stderr.readline()) != "here\n":
        assert line, "it has ended before that phase"
    time.sleep(wait)
    workers = children(started.pid)
    started.send_signal(number)
    asked = time.monotonic()
    _, error = started.communicate(timeout=30)
    assert time.monotonic() - asked < 5
    assert (started.returncode, error.splitlines()[-1]) == ENDS[number]
    assert "Traceback" not in error
    assert "ignored" not in error
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def check(whole: tuple[Path, Path], folder: Path, phase: str, number: signal.Signals) -> None:
    """Before, within or after the call, by chance of the phase's name."""
    source, expected = whole
    stop(words(source, folder / "out"), folder / "hook", PHASES[phase], number, len(phase) % 4 / 10)
    done = spectral_here(*words(source, folder / "out"))
    assert done.returncode == 0, done.stderr
    assert files_of(folder / "out") == files_of(expected)


@pytest.mark.parametrize("phase", SHORT)
def test_stopped_in_a_phase(whole: tuple[Path, Path], tmp_path: Path, phase: str) -> None:
    check(whole, tmp_path, phase, signal.SIGTERM)


def test_stopped_while_a_pickle_is_read(tmp_path: Path) -> None:
    """It is no damage of the source."""
    archive = Cifar(PYTHON[0]).pack(tmp_path / "cifar")
    phase = "pipeline.sources.containers.cifar:load_pickle:2"
    stop(words(archive, tmp_path / "out"), tmp_path / "hook", phase, signal.SIGTERM, 0.1)
    for out in ("out", "at once"):
        done = spectral_here(*words(archive, tmp_path / out))
        assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == files_of(tmp_path / "at once")


@pytest.mark.chaos
@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("phase", PHASES)
def test_stopped_in_any_phase(
    whole: tuple[Path, Path], tmp_path: Path, phase: str, number: signal.Signals
) -> None:
    check(whole, tmp_path, phase, number)
