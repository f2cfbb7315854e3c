"""Images and prepared data sets that tests share; all made here, from fixed seeds."""

import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import trainer  # noqa: F401  # says how idle threads wait, before any test imports torch
from tests.slurm import Slurm, missing, running

# Where a shell started us in the background Ctrl-C is ignored, also by what we start
signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).parent.parent
TINTS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
# What the fixture `data` holds, within it
SUB4, RAW, GREY = (f"toy/sub4-s32{words}-calib0.2" for words in ("", "-dct-raw", "-c1-raw"))
WHOLE, SHORTEST = (f"toy/sub1-s32{words}-calib0.2" for words in ("", "-shortest"))
Done = subprocess.CompletedProcess[str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes take longest: first, so that `make test` ends on both cores."""
    long = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: item.path not in long)


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth areas, edges and a little noise, in colour: close enough to a photograph."""
    low = rng.integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), dtype=np.uint8)
    image = Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(np.int16)
    y, x = np.mgrid[:height, :width]
    inside = (x - width * rng.random()) ** 2 + (y - height * rng.random()) ** 2 < (height / 3) ** 2
    pixels[inside] = pixels[inside] // 2 + rng.integers(0, 128, 3)
    pixels += rng.normal(0, 3, pixels.shape).astype(np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.SHARPEN)


def write_class_folders(root: Path, per_class: dict[str, int], classes: int = 3) -> Path:
    """root/{split}/class_{i}/NNN.jpg, `per_class` images for each split; classes differ."""
    rng = np.random.default_rng(7)
    for split, count in per_class.items():
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                image = photograph(rng, 60 + 5 * label, 48)
                tint = Image.new(
                    "RGB", image.size, [(200, 40, 40), (40, 200, 40), (40, 40, 200)][label % 3]
                )
                Image.blend(image, tint, 0.4).save(folder / f"{number:03d}.jpg", quality=92)
    return root


def spectral(*args: object, cwd: Path | None = None, **env: str) -> Done:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )


def spectral_here(*args: object, **env: str) -> Done:
    """The command line in this process, where torch and ffcv are loaded already: the same
    code from the parsing of options to the exit status, without seconds of imports."""
    from click.testing import CliRunner

    from cli import main

    found = CliRunner(env=env).invoke(main, [str(arg) for arg in args])
    error = found.stderr
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        error += "".join(traceback.format_exception(found.exception))
    return subprocess.CompletedProcess([], found.exit_code, found.stdout, error)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 train and 30 val images of three classes."""
    return write_class_folders(tmp_path_factory.mktemp("source"), {"train": 40, "val": 10})


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """3,750 images (links to 150), and three bad ones, in three classes, with a val split."""
    root = tmp_path_factory.mktemp("many") / "source"
    for split, copies in (("train", 30), ("val", 5)):
        for path in sorted((source / split).rglob("*.jpg")):
            folder = root / split / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            for copy in range(copies):
                os.link(path, folder / f"{path.stem}-{copy}.jpg")
    for i in range(3):
        (root / "train" / f"class_{i}" / f"0{i}-bad.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """The source, prepared as sub4 (zstd and raw) and as whole images, 32 px."""
    out = tmp_path_factory.mktemp("data")
    for options in (
        ("--splits", 4),
        ("--splits", 4, "--transform", "dct", "--codec", "raw"),
        ("--splits", 4, "--channels", 1, "--codec", "raw"),
        ("--splits", 1),
        ("--splits", 1, "--resize", "shortest"),
    ):
        result = spectral_here(
            "prepare",
            "toy",
            "--source",
            source,
            "--size",
            32,
            "--calib",
            0.2,
            "--out",
            out,
            "--workers",
            1,
            *options,
        )
        assert result.returncode == 0, result.stderr
    return out


def leave_out(why: str) -> None:
    """A test that needs a program which is not there; in CI all are."""
    assert "SPECTRAL_TESTS_NEED_ALL" not in os.environ, why
    pytest.skip(why)


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser, Debian's package chromium."""
    found = shutil.which("chromium")
    if found is None:
        leave_out("there is no chromium: apt-get install chromium")
    return str(found)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of our own; without its packages the test is left out, but not in CI."""
    if why := missing():
        leave_out(why)
    with running(tmp_path_factory.mktemp("slurm")) as found:
        yield found


AS_ROOT = ["sudo", "-n"] if os.geteuid() and shutil.which("sudo") else []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a real disk of the size asked for ("3m"), which then fills up."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        disk = tmp_path / "disk"
        disk.mkdir()
        options = f"size={size},uid={os.geteuid()},gid={os.getegid()}"
        command = [*AS_ROOT, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and os.geteuid():
            pytest.skip("mounting a disk that is small enough to fill up takes root, or sudo")
        assert done.returncode == 0, done.stderr
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:
        subprocess.run([*AS_ROOT, "umount", str(disk)], check=True)
