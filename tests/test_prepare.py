"""`spectral prepare` on real images, real processes, real faults."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.format import manifest
from pipeline.format.beton import BetonReader, digest
from pipeline.format.codec import decode_plane
from pipeline.planes.imaging import image_to_values, load, pixels
from pipeline.planes.splitter import Splitter
from pipeline.stage import run
from tests.conftest import (
    AS_ROOT,
    GREY,
    RAW,
    ROOT,
    SHORTEST,
    SUB4,
    WHOLE,
    Done,
    spectral_here,
    write_class_folders,
)

pytestmark = pytest.mark.processes

TOY = ("--size", 32, "--splits", 4, "--calib", 0.2)


def prepare(source: Path, out: Path, *options: object) -> Done:
    """Prepare `source` as the data set `toy`, sub4 of 32 px. Its workers are processes anyway."""
    return spectral_here("prepare", "toy", "--source", source, *TOY, "--out", out, *options)


def files_of(directory: Path) -> dict[str, str]:
    """Digest of every file but the lock, by its path within `directory`."""
    found = [p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {p.relative_to(directory).as_posix(): digest(p) for p in found}


def test_shards_hold_the_planes_of_the_source(data: Path, source: Path) -> None:
    """Each stored plane is what the chain for one image gives; labels and order fit."""
    for folder in (SUB4, RAW, GREY):
        found = manifest.load(data / folder)
        prep = found.preparation
        table = pq.read_table(data / folder / "samples.parquet").to_pylist()
        for split in ("train", "calib", "val"):
            rows = [row for row in table if row["split"] == split]
            readers = [BetonReader(data / folder / found.shard(split, k)) for k in range(4)]
            assert [r.samples for r in readers] == [len(rows)] * 4
            for i in range(0, len(rows), 7):
                expected = image_to_values((source / rows[i]["id"]).read_bytes(), prep)
                stored = [decode_plane(r.payload(i), prep.codec, prep.plane_shape) for r in readers]
                assert (np.stack(stored) == expected).all()
                assert readers[0].labels[i] == rows[i]["label"]
                assert found.classes[rows[i]["label"]] == Path(rows[i]["id"]).parent.name


def test_the_manifest_adds_up(data: Path, source: Path) -> None:
    found = manifest.load(data / SUB4)
    counts = found.counts
    assert sum(c["indexed"] for c in counts.values()) == 150
    assert all(c["indexed"] == c["written"] + c["quarantined"] for c in counts.values())
    assert counts["val"]["written"] == 30
    assert 10 < counts["calib"]["written"] < 40
    assert found.psnr_db is not None
    assert found.psnr_db > 38
    assert {f"{s}/shard_0{k}.beton" for s in ("train", "calib", "val") for k in range(4)} < set(
        found.files
    )
    for name, entry in found.files.items():
        assert digest(data / SUB4 / name) == entry["digest"]


def test_mean_and_deviation_are_those_of_the_planes(data: Path) -> None:
    """Recorded after the colour rotation is undone, over train alone."""
    found = manifest.load(data / SUB4)
    splitter = Splitter(found.preparation)
    for k, plane in enumerate(found.planes):
        with BetonReader(data / SUB4 / found.shard("train", k)) as reader:
            stored = [
                decode_plane(reader.payload(i), "zstd", (3, 16, 16)) for i in range(reader.samples)
            ]
        values = np.stack(stored) * splitter.steps[k] + splitter.offsets[k][:, None, None]
        rgb = np.einsum("nchw,cd->ndhw", values, splitter.colour)
        np.testing.assert_allclose(rgb.mean(axis=(0, 2, 3)), plane.mean, atol=1e-6)
        np.testing.assert_allclose(rgb.std(axis=(0, 2, 3)), plane.std, atol=1e-6)


def test_psnr_is_that_of_the_rebuilt_images(data: Path, source: Path) -> None:
    """Pooled over all images (so few that all are measured), from the stored planes."""
    found = manifest.load(data / SUB4)
    splitter, squares, count = Splitter(found.preparation), 0.0, 0
    for row in pq.read_table(data / SUB4 / "samples.parquet").to_pylist():
        image, _ = load((source / row["id"]).read_bytes(), found.preparation)
        planes, rgb = splitter.empty(), pixels(image)
        splitter.split(rgb, planes, np.zeros(4, np.int64))
        squares += ((splitter.rebuild(planes).astype(float) - rgb) ** 2).sum()
        count += rgb.size
    assert found.psnr_images == 150
    assert found.psnr_db == pytest.approx(10 * np.log10(255**2 * count / squares), abs=1e-9)


def test_bytes_do_not_depend_on_the_number_of_workers(
    data: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workers, a_thread in ((1, 4), (3, 1)):  # of the second, several threads write
        monkeypatch.setattr(run, "WORKERS_A_WRITING_THREAD", a_thread)
        out = tmp_path / str(workers)
        done = prepare(source, out, "--workers", workers)
        assert done.returncode == 0, done.stderr
        assert files_of(out / SUB4) == files_of(data / SUB4)


def test_run_again_it_says_that_it_is_finished(data: Path, source: Path) -> None:
    before = files_of(data / SUB4)
    done = prepare(source, data)
    assert done.returncode == 0
    assert "already finished" in done.stdout
    assert files_of(data / SUB4) == before


def test_another_source_for_the_same_folder_is_refused(data: Path, tmp_path: Path) -> None:
    other = write_class_folders(tmp_path / "other", {"train": 2})
    done = prepare(other, data)
    assert done.returncode == 1
    assert "was made otherwise: source was" in done.stderr


def test_whole_images_are_stock_ffcv_jpegs(data: Path) -> None:
    for folder, shape in ((WHOLE, (3, 32, 32)), (SHORTEST, (3, 32, 40))):
        with BetonReader(data / folder / "train" / "shard_00.beton") as reader:
            assert reader.codec == "jpeg"
            assert reader.shape(0) == shape
            assert reader.payload(0)[:3] == b"\xff\xd8\xff"


def test_bad_images_are_quarantined_with_their_reasons(source: Path, tmp_path: Path) -> None:
    """Nothing is dropped in silence, whatever the file is called."""
    mixed = tmp_path / "mixed"
    shutil.copytree(source, mixed)
    folder = mixed / "train" / "class_1"
    good = (folder / "000.jpg").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text\n.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "really-a-jpeg.txt").write_bytes(good)
    done = prepare(mixed, tmp_path)
    assert done.returncode == 0, done.stderr
    counts = manifest.load(tmp_path / SUB4).counts
    assert sum(c["quarantined"] for c in counts.values()) == 3
    assert sum(c["written"] for c in counts.values()) == 151
    rows = pq.read_table(tmp_path / SUB4 / "samples.parquet").to_pylist()
    reasons = {Path(r["id"]).name: r["reason"] for r in rows if r["status"] == "quarantined"}
    assert set(reasons) == {"empty.jpg", "text\n.jpg", "cut.jpg"}
    assert r"text\n.jpg: not an image" in spectral_here("inspect", tmp_path / SUB4, "--bad").stdout
    assert "empty" in reasons["empty.jpg"]
    assert "truncated" in reasons["cut.jpg"]

    done = prepare(mixed, tmp_path / "strict", "--max-bad", 2)
    assert done.returncode == 1
    assert "3 images so far cannot be used, more than --max-bad 2" in done.stderr
    assert "give a larger --max-bad, with which the same command goes on" in done.stderr
    assert "with --report-bad it lists them all" in done.stderr
    assert "cut.jpg: cannot decode" in done.stderr
    assert r"text\n.jpg: not an image" in done.stderr
    assert not list((tmp_path / "strict").rglob("*.beton"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: None, "no such file"),
        (lambda root: root.mkdir(), "an empty folder; accepted are"),
        (lambda root: root.write_text("x"), "a file of 1 bytes whose content is not known"),
        (lambda root: (root / "train").mkdir(parents=True), "no class folders"),
        (lambda root: (root / "train" / "a").mkdir(parents=True), "empty class"),
        (lambda root: (root / "val" / "a").mkdir(parents=True), "no train/"),
        (lambda root: _touch(root / "train/a/1.jpg", root / "val/b/1.jpg"), "lacks: b"),
        (lambda root: _touch(root / "train/a/1.jpg", root / "train/1.jpg"), "beside its class"),
        (lambda root: _touch(root / "train/a/1.jpg", root / "more/a/1.jpg"), "and also more"),
        (lambda root: _touch(root / "a/1.jpg"), "no image can be used"),
        (lambda root: (_touch(root / "a/1.jpg"), os.mkfifo(root / "a/2.jpg")), "no regular file"),
        (lambda root: (_touch(root / "a/1.jpg"), (root / "a/2").symlink_to("x")), "broken link"),
        (lambda root: (_touch(root / "a/1.jpg"), (root / "a/2").symlink_to(".")), "it lies in"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_used_is_refused(
    tmp_path: Path, build: object, message: str
) -> None:
    build(tmp_path / "source")  # type: ignore[operator]
    done = prepare(tmp_path / "source", tmp_path / "out")
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.beton"))


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_no_val_is_accepted_and_said(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "source", {"train": 4})
    done = prepare(tmp_path / "source" / "train", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no val split" in done.stderr
    assert manifest.load(tmp_path / SUB4).counts["val"]["indexed"] == 0


def test_limit_spreads_over_the_classes(source: Path, tmp_path: Path) -> None:
    done = spectral_here(
        "prepare", "toy", "--source", source, *TOY, "--limit", 9, "--out", tmp_path, "--json"
    )
    found = json.loads(done.stdout)
    assert sum(found["counts"][s]["written"] for s in ("train", "calib")) == 9
    labels = BetonReader(Path(found["path"]) / "val" / "shard_00.beton").labels
    assert np.bincount(labels).tolist() == [3, 3, 3]


def test_counts_that_differ_from_the_catalogue_are_said(source: Path, tmp_path: Path) -> None:
    done = spectral_here("prepare", "cifar10", "--source", source, "--splits", 4, "--out", tmp_path)
    assert done.returncode == 0
    assert "has 3 classes, cifar10 usually 10" in done.stderr
    assert "120 images in train, cifar10 usually 50000" in done.stderr


def start(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *map(str, args)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def children(pid: int) -> list[int]:
    """Worker processes: the children that run Python's spawned main."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            found.append(int(child))
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def long_source(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """Enough (linked) images to catch a run in the middle."""
    root = tmp_path_factory.mktemp("long") / "source"
    for path in sorted((source / "train").rglob("*.jpg")):
        folder = root / "train" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(80):
            os.link(path, folder / f"{path.stem}-{copy}.jpg")
    return root


def test_a_killed_worker_is_replaced(long_source: Path, tmp_path: Path) -> None:
    """Real SIGKILLs from outside, again and again: they are laid to no image."""
    args = ("prepare", "toy", "--source", long_source, *TOY, "--workers", 2, "--out")
    run = start(*args, tmp_path / "killed")
    partial = tmp_path / "killed" / SUB4 / "train" / "shard_00.beton.partial"
    for size in (400_000, 800_000, 1_200_000):
        wait_until(lambda size=size: partial.exists() and partial.stat().st_size > size)
        os.kill(children(run.pid)[0], signal.SIGKILL)
    _, error = run.communicate(timeout=120)
    assert run.returncode == 0, error
    assert error.count("killed (SIGKILL)") in (1, 2, 3)  # one without a task is not missed
    assert spectral_here(*args, tmp_path / "whole").returncode == 0
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_killed_parent_takes_its_workers_along(long_source: Path, tmp_path: Path) -> None:
    run = start("prepare", "toy", "--source", long_source, *TOY, "--workers", 2, "--out", tmp_path)
    wait_until(lambda: len(children(run.pid)) == 2)
    workers = children(run.pid)
    run.kill()
    _, error = run.communicate()
    assert "Traceback" not in error
    wait_until(lambda: not any(Path(f"/proc/{w}/cmdline").exists() and
                               b"spawn_main" in Path(f"/proc/{w}/cmdline").read_bytes()
                               for w in workers), 15)  # fmt: skip


def test_a_second_run_on_the_same_output_is_refused(long_source: Path, tmp_path: Path) -> None:
    args = ("prepare", "toy", "--source", long_source, *TOY, "--workers", 1, "--out", tmp_path)
    run = start(*args)
    wait_until(lambda: (tmp_path / SUB4 / "train").exists())
    second = spectral_here(*args)
    assert second.returncode == 1
    assert "another run is at work" in second.stderr
    run.kill()
    run.communicate()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_the_way_round(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As Lustre without its option flock. None is at hand: the call gives its error."""

    def without(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    done = spectral_here("prepare", "toy", "--source", source, *TOY, "--out", tmp_path)
    assert done.returncode == 1
    assert f"{SUB4}/.lock cannot be locked ({os.strerror(number)})" in done.stderr
    assert "Choose an --out on another one" in done.stderr


def test_a_read_only_installation_and_home_compile_into_a_temporary_folder(
    source: Path, small_disk: Callable[[str], Path]
) -> None:
    """numba gives up where it cannot keep what it compiles; the folder is gone at the end."""
    disk = small_disk("40m")
    shutil.copytree(ROOT / "pipeline", disk / "pipeline", ignore=shutil.ignore_patterns("__pyc*"))
    temporary, out = disk.with_name("temporary"), disk.with_name("out")
    temporary.mkdir()
    subprocess.run([*AS_ROOT, "mount", "-o", "remount,ro", str(disk)], check=True)
    code = (
        "from pathlib import Path\n"
        "from contextlib import nullcontext\n"
        "import os, tempfile\n"
        "from pipeline.preparation import preparation\n"
        "from pipeline.stage.prepare import prepare\n"
        "if __name__ == '__main__':\n"
        "    prep, progress = preparation('toy', 4, size=32), lambda *_: nullcontext(print)\n"
        "    prepare(prep, Path(os.environ['S']), Path(os.environ['O']), workers=1, max_bad=None,\n"
        "            progress=progress)\n"
        "    print(os.listdir(tempfile.gettempdir()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=disk, capture_output=True, text=True,
        env={"PYTHONPATH": str(disk), "HOME": "/proc/nowhere", "TMPDIR": str(temporary),
             "S": str(source), "O": str(out), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "spectral-compiled-" in done.stdout
    assert list(out.rglob("manifest.json"))
    assert not list(temporary.iterdir())


def test_a_full_disk_is_a_clear_error(long_source: Path, small_disk: Callable[[str], Path]) -> None:
    """Refused where it is seen to be coming; where others fill it meanwhile, the run resumes."""
    disk = small_disk("16m")
    (disk / "ballast").write_bytes(bytes(10_000_000))
    done = prepare(long_source, disk)
    assert done.returncode == 1
    assert "the shards need about" in done.stderr
    assert not list(disk.rglob("*.beton"))

    (disk / "ballast").unlink()
    run = start("prepare", "toy", "--source", long_source, *TOY, "--workers", 1, "--out", disk)
    partial = disk / SUB4 / "train" / "shard_00.beton.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 600_000)
    with pytest.raises(OSError, match="No space"):
        (disk / "ballast").write_bytes(bytes(16_000_000))
    _, error = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "the disk is full" in error
    assert "Traceback" not in error
    assert not list(disk.rglob("*.beton"))

    (disk / "ballast").unlink()
    done = prepare(long_source, disk)
    assert done.returncode == 0, done.stderr
    assert spectral_here("verify", disk / SUB4).returncode == 0


def test_a_source_that_vanishes_is_a_clear_error(long_source: Path, tmp_path: Path) -> None:
    """A file that was indexed and is gone when its turn comes is no bad image."""
    copy = tmp_path / "source"
    shutil.copytree(long_source, copy, copy_function=os.link)
    run = start("prepare", "toy", "--source", copy, *TOY, "--workers", 1, "--out", tmp_path / "out")
    wait_until(lambda: (tmp_path / "out" / SUB4 / "train").exists())
    shutil.rmtree(copy / "train" / "class_2")
    _, error = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "class_2" in error
    assert "No such file" in error
    assert "Traceback" not in error


def test_a_source_that_has_changed_is_refused_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "source", {"train": 8, "val": 2})
    assert prepare(root, tmp_path / "out").returncode == 0
    extra = root / "train" / "class_0" / "more.jpg"
    shutil.copy(root / "train" / "class_0" / "000.jpg", extra)
    changed = prepare(root, tmp_path / "out")
    assert changed.returncode == 1
    assert "has changed since" in changed.stderr
    assert "30 images then, 31 images now" in changed.stderr
    shutil.rmtree(root)
    assert "already finished" in prepare(root, tmp_path / "out").stdout


def test_a_finished_directory_that_lacks_a_shard_is_not_finished(
    source: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / SUB4, tmp_path / SUB4)
    (tmp_path / SUB4 / "train" / "shard_02.beton").unlink()
    done = prepare(source, tmp_path)
    assert done.returncode == 1
    assert "shard_02.beton is missing: --overwrite" in done.stderr


def test_output_within_the_source_is_refused(source: Path) -> None:
    """Its shards would be taken for images the next time."""
    done = prepare(source, source / "data")
    assert done.returncode == 1
    assert "lie within each other" in done.stderr
    assert not (source / "data").exists()
