"""Whatever is in an image or an archive: no hang, no crash, no error of another kind.

The long form tries SPECTRAL_FUZZ inputs (8,000), half of them from a seed that is new each time,
or SPECTRAL_FUZZ_SEED. `.venv/bin/python -m tests.fuzz SEED NUMBER 1` tries one of them again.
"""

import json
import os
import random
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, spectral_here
from tests.fuzz import TARGETS, made

SECONDS = 20  # for one input, on a machine that is busy
INPUTS = int(os.environ.get("SPECTRAL_FUZZ", 8000))
SEED = int(os.environ.get("SPECTRAL_FUZZ_SEED", random.SystemRandom().randrange(1 << 32)))


def tried(seed: int, count: int) -> dict[int, str]:
    """What went wrong, by the number of the input; whoever hangs or crashes is passed over."""
    found: dict[int, str] = {}
    first = 0
    while first < count:
        command = [sys.executable, "-m", "tests.fuzz", *map(str, (seed, first, count - first))]
        first = watched(started(command), found) + 1
    return found


def started(command: list[str], **env: str) -> subprocess.Popen[bytes]:
    """Unbuffered, so that `select` sees all that is still to be read."""
    pipe, env = subprocess.PIPE, {**os.environ, **env}
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, bufsize=0, env=env)


def watched(process: subprocess.Popen[bytes], found: dict[int, str]) -> int:
    """The last input that the process has tried."""
    assert process.stdout is not None
    at, word = -1, ""
    while word != "end":
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            process.kill()
            found[at] = f"took longer than {SECONDS} s"
            break
        word, _, rest = process.stdout.readline().decode().strip().partition(" ")
        if word == "at":
            at = int(rest.split()[0])
        elif word == "found":
            found[at] = json.loads(rest.partition(" ")[2])
        elif not word:
            found[at] = f"ended with status {process.wait()}"
            break
    process.stdout.close()
    process.wait()
    return at if word != "end" else sys.maxsize


def report(seed: int, found: dict[int, str]) -> str:
    targets = list(TARGETS)
    return f"seed {seed}\n" + "\n".join(
        f"input {number}, {targets[number % len(targets)]}: {what}"
        for number, what in found.items()
    )


def test_damaged_inputs_are_refused_or_read() -> None:
    found = tried(0, 30 * len(TARGETS))
    assert not found, report(0, found)


@pytest.mark.chaos
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", [1, SEED])
def test_many_damaged_inputs_are_refused_or_read(seed: int) -> None:
    print(f"seed {seed}, {INPUTS // 2} inputs")  # noqa: T201
    found = tried(seed, INPUTS // 2)
    assert not found, report(seed, found)


IMAGES = [name for name in TARGETS if TARGETS[name][1] is TARGETS["jpeg"][1]]


@pytest.mark.chaos
def test_no_damaged_image_is_lost(tmp_path: Path) -> None:
    """Each is written, or quarantined with a reason."""
    count = min(INPUTS, 4000)
    folder = tmp_path / "source" / "train"
    for number in range(count):
        name = IMAGES[number % len(IMAGES)]
        path = folder / f"class{number % 3}" / f"{number}.{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made(name, 2, number))
    done = spectral_here(
        "prepare", "toy", "--source", tmp_path / "source", "--out", tmp_path, "--size", 32,
        "--splits", 4, "--calib", 0, "--max-bad", count, "--workers", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "toy").iterdir()
    counts = json.loads((directory / "manifest.json").read_text())["counts"]["train"]
    assert counts["indexed"] == count == counts["written"] + counts["quarantined"]
    assert min(counts["written"], counts["quarantined"]) > count // 10
    rows = pq.read_table(directory / "samples.parquet").to_pylist()
    names = sorted(int(row["member"].split("/")[1].split(".")[0]) for row in rows)
    assert np.array_equal(names, np.arange(count))
    assert all(row["reason"] for row in rows if row["status"] == "quarantined")


def test_the_watch_sees_what_hangs_crashes_and_fails() -> None:
    code = (
        "import os, time\n"
        "print('at 0 a'); print('found 0 \"an error\"'); print('at 1 b', flush=True)\n"
        "os.abort() if os.environ['END'] == 'crash' else time.sleep(60)"
    )
    for end, expected in (("crash", "ended with status -6"), ("hang", "took longer than 1 s")):
        found: dict[int, str] = {}
        process = started([sys.executable, "-c", code], END=end)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.test_fuzz.SECONDS", 1)
            assert watched(process, found) == 1
        assert found == {0: "an error", 1: expected}
