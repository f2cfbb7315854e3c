"""ImageNet-21K in small: many real JPEGs through the 21K path, rate and memory over time.

    python benchmarks/rehearsal.py SOURCE [--images 50000] [--classes 200] [--form tars] [--png F]
    python benchmarks/rehearsal.py SOURCE --keep FOLDER; … --built FOLDER/winter21
    python benchmarks/rehearsal.py SOURCE --rows 14200000 [--seconds 60]
    python benchmarks/rehearsal.py SOURCE --rows 14200000 --resume

First form: the photographs of SOURCE, each re-encoded with small changes, packed as
<class>.tar files in a folder (`--form tars`) or as one .tar.gz of them (`--form gz`), then
`spectral prepare imagenet21k --splits 36 --classes all` (they are too few a class for 21K-P).
Second form: an index of so many invented rows, all of which point to the photographs; the run
is stopped after some seconds. Memory is the
proportional set size of all processes together (pages that several of them map are shared out).
Third form: that run comes to nine tenths of its rows (what a worker gave once is written again and
again), is killed, and started again: how long that takes up to its next note, what the parent
reads, and its peak of memory.
"""

import argparse
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import images, report
from PIL import Image

from pipeline.sources.index import Index, RowReader, RowWriter
from pipeline.stage.journal import load
from pipeline.stage.messages import Chunk, Task
from pipeline.stage.pool import Pool

EVERY = 1.0  # seconds between looks


def another(path: Path, seed: int) -> bytes:
    """The photograph, cropped a little, a little brighter or darker, encoded anew."""
    rng = np.random.default_rng(seed)
    with Image.open(path) as image:
        image.draft("RGB", (500, 500))
        found = image.convert("RGB")
    found.thumbnail((500, 500))
    left, top = (int(x) for x in rng.integers(0, 12, 2))
    found = found.crop((left, top, found.width - int(rng.integers(12)), found.height))
    gain = float(rng.uniform(0.9, 1.1))
    found = found.point(lambda value: min(255, int(value * gain)))
    data = io.BytesIO()
    found.save(data, "JPEG", quality=int(rng.integers(85, 96)))
    return data.getvalue()


def class_tar(task: tuple[Path, list[Path], int, int]) -> None:
    """`count` images of one class, in a tar."""
    target, photos, number, count = task
    with tarfile.open(target, "w") as tar:
        for i in range(count):
            data = another(photos[(number * 7 + i) % len(photos)], number * 100_000 + i)
            entry = tarfile.TarInfo(f"{target.stem}_{i}.JPEG")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def build(photos: list[Path], root: Path, count: int, classes: int, form: str) -> Path:
    """The miniature; classes of different sizes, the last tenth too small to be kept."""
    folder = root / "winter21"
    folder.mkdir()
    small = classes // 10
    each = -(-count // classes)
    sizes = [40 if i >= classes else each + (i % 7) * 4 - 12 for i in range(classes + small)]
    tasks = [(folder / f"n{i:08d}.tar", photos, i, size) for i, size in enumerate(sizes)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(class_tar, tasks))
    if form == "tars":
        return folder
    whole = root / "winter21_whole.tar.gz"
    with tarfile.open(whole, "w:gz", compresslevel=1) as tar:
        tar.add(folder, "winter21_whole")
    return whole


def family(pid: int) -> list[int]:
    """A process and its children."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        found = []
    return [pid, *map(int, found)]


def memory(pid: int) -> tuple[float, float]:
    """(of the parent, of the largest child) in MB: proportional set size."""
    sizes = []
    for process in family(pid):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        sizes.append(int(text.split("Pss:")[1].split()[0]) / 1000)
    return (sizes[0] if sizes else 0.0), max(sizes[1:], default=0.0)


def rows_done(directory: Path) -> int:
    """What the journal says."""
    state = load(directory / "journal" / "state")
    return int(state["tally"]["rows"]) if state else 0


def watch(
    words: list[str], directory: Path, seconds: float | None
) -> tuple[list[tuple[float, int, float, float]], int]:
    """(seconds, rows, MB of the parent, MB of the largest worker) over a run; its exit status."""
    run = subprocess.Popen(
        [sys.executable, "-m", "cli", *words],
        cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL,
    )  # fmt: skip
    start, looks = time.monotonic(), []
    while run.poll() is None:
        time.sleep(EVERY)
        now = time.monotonic() - start
        looks.append((now, rows_done(directory), *memory(run.pid)))
        if seconds is not None and now > seconds:
            os.kill(run.pid, signal.SIGTERM)
            run.wait()
    return looks, run.returncode


def blow_up(work: Path, source: Path, rows: int) -> None:
    """Repeat the rows of an index until there are so many."""
    index = Index.load(work, source)
    assert index is not None, "watched until it was there"
    whole = pa.Table.from_batches(list(RowReader(Index.path(work)).batches())).combine_chunks()
    (batch,) = whole.to_batches()
    writer, done = RowWriter(work / "larger.arrow"), 0
    times = -(-(1 << 16) // len(batch))
    large = pa.Table.from_batches([batch] * times).combine_chunks().to_batches()[0]
    counts = dict.fromkeys(index.summary.counts, 0)
    while done < rows:
        part = large.slice(0, rows - done)
        writer.write(part)
        done += len(part)
        for code, count in enumerate(np.bincount(part["split"].to_numpy(), minlength=4).tolist()):
            counts[list(counts)[code]] += count
    writer.close()
    (work / "larger.arrow").replace(Index.path(work))
    index.summary.counts, index.summary.rows = counts, rows
    index.save()


def begin(source: Path, out: Path, rows: int, size: int) -> tuple[list[str], Path]:
    """The command, and its directory with an index of so many rows."""
    words = ["prepare", "invented", "--source", str(source), "--splits", "36", "--size", str(size)]
    words += ["--out", str(out), "--workers", "2", "--max-bad", "1000000000"]
    directory = out / "invented" / f"sub36-s{size}"
    run = start(words)
    while not (directory / "journal" / "index.json").exists():
        time.sleep(0.01)
    run.kill()
    run.wait()
    for path in directory.rglob("*"):
        if path.name in ("state", "outcomes", "digests", "reasons.jsonl"):
            path.unlink()
    blow_up(directory / "journal", source, rows)
    return words, directory


def invented(source: Path, out: Path, rows: int, seconds: float) -> dict[str, Any]:
    """The second form. Planes of 6x6 px, so that the disk is large enough."""
    words, directory = begin(source, out, rows, size=36)
    looks, status = watch(words, directory, seconds)
    if not looks[-1][1]:
        raise SystemExit(f"prepare ended with {status} before the first rows")
    return {"rows": rows, "rows_done": looks[-1][1], **_figures(looks)}


def start(words: list[str], before: str = "") -> subprocess.Popen[bytes]:
    """The command, after some Python."""
    code = f"{before}\nfrom cli import main; main(prog_name='spectral')"
    root = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (root, root / "benchmarks")))
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=root, env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def repeat_chunks() -> None:
    """From here on workers are asked once for a task of each size, and answer all such tasks."""
    real, known = Pool.run, {}

    def run(
        pool: Pool, work: Iterable[tuple[Task, Any]]
    ) -> Iterator[tuple[Any, Chunk, memoryview]]:
        for task, batch in work:
            size = len(task.places)
            if size not in known:
                for _, chunk, payload in real(pool, [(replace(task, number=0), batch)]):
                    known[size] = chunk, memoryview(bytes(payload))
            yield batch, *known[size]

    Pool.run = run  # type: ignore[method-assign, assignment]


def resumed(source: Path, out: Path, rows: int) -> dict[str, Any]:
    """The third form. Planes of one pixel."""
    words, directory = begin(source, out, rows, size=6)
    run = start(words, "from rehearsal import repeat_chunks; repeat_chunks()")
    while rows_done(directory) < 0.9 * rows:
        if run.poll() is not None:
            raise SystemExit(f"prepare ended with {run.returncode} before it was killed")
        time.sleep(0.05)
    run.kill()
    run.wait()
    done = rows_done(directory)
    journal = {path.name: path.stat().st_size for path in (directory / "journal").iterdir()}
    began = time.monotonic()
    run, read, peak = start(words), 0, 0
    while rows_done(directory) == done:
        if run.poll() is not None:
            raise SystemExit(f"prepare ended with {run.returncode} when it was started again")
        read = int(Path(f"/proc/{run.pid}/io").read_text().split()[1])
        peak = int(Path(f"/proc/{run.pid}/status").read_text().split("VmHWM:")[1].split()[0])
        time.sleep(0.02)
    taken = time.monotonic() - began
    os.kill(run.pid, signal.SIGTERM)
    run.wait()
    return {
        "rows": rows, "rows_done": done, "seconds_to_next_note": round(taken, 1),
        "parent_read_mb": round(read / 1e6), "parent_peak_mb": round(peak / 1e3),
        "journal_kb": {name: round(size / 1e3) for name, size in journal.items()},
    }  # fmt: skip


def _figures(looks: list[tuple[float, int, float, float]]) -> dict[str, Any]:
    """Rate and memory in fifths of the time in which rows were done."""
    started = next(i for i, look in enumerate(looks) if look[1])
    ended = max(i for i, look in enumerate(looks) if look[1] > looks[i - 1][1])
    used = looks[started : ended + 1]
    bounds = [used[round(i * (len(used) - 1) / 5)] for i in range(6)]
    pairs = list(pairwise(bounds))
    return {
        "images_per_s_by_fifths": [round((b[1] - a[1]) / (b[0] - a[0])) for a, b in pairs],
        "parent_mb_by_fifths": [round(b[2]) for _, b in pairs],
        "worker_mb_by_fifths": [round(b[3]) for _, b in pairs],
        "parent_peak_mb": round(max(look[2] for look in looks)),
        "worker_peak_mb": round(max(look[3] for look in looks)),
        "seconds_before_first_rows": round(looks[started][0], 1),
    }


def draw(looks: list[tuple[float, int, float, float]], to: Path) -> None:
    """Rate and memory over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    seconds, rows, parent, worker = (np.array(column) for column in zip(*looks, strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    window = 5
    rate = (rows[window:] - rows[:-window]) / (seconds[window:] - seconds[:-window])
    left.plot(seconds[window:], rate)
    left.set(xlabel="s", title=f"images/s over the last {window} looks", ylim=(0, None))
    right.plot(seconds, parent, label="parent")
    right.plot(seconds, worker, label="largest worker")
    right.set(xlabel="s", title="memory, MB (PSS)", ylim=(0, None))
    right.legend()
    figure.tight_layout()
    figure.savefig(to, dpi=110)


def main() -> None:
    """One of the three forms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--form", choices=("tars", "gz"), default="tars")
    parser.add_argument("--built", type=Path, help="a miniature that an earlier `--keep` has left")
    parser.add_argument("--keep", type=Path, help="build the miniature there, and do no more")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    if args.keep:
        args.keep.mkdir(parents=True)
        build(images(args.source), args.keep, args.images, args.classes, args.form)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.rows and args.resume:
            report("rehearsal-resume", **resumed(args.source, root, args.rows))
            return
        if args.rows:
            report("rehearsal-rows", **invented(args.source, root, args.rows, args.seconds))
            return
        if args.built is None:
            source = build(images(args.source), root, args.images, args.classes, args.form)
        else:
            source = args.built
        words = ["prepare", "imagenet21k", "--splits", "36", "--source", str(source)]
        words += ["--out", str(root / "out"), "--workers", str(args.workers), "--classes", "all"]
        directory = root / "out" / "imagenet21k" / "sub36-all"
        start = time.monotonic()
        looks, status = watch(words, directory, None)
        taken = time.monotonic() - start
        if status:
            raise SystemExit(f"prepare ended with {status}")
        found = json.loads((directory / "manifest.json").read_text())
        written = sum(count["written"] for count in found["counts"].values())
        sizes = [plane["bytes_per_sample"] for plane in found["planes"]]
        if args.png:
            draw(looks, args.png)
        report(
            "rehearsal", form=source.name, classes=len(found["classes"]), images=written,
            workers=args.workers, seconds=round(taken, 1), images_per_s=round(written / taken),
            bytes_a_sample_and_plane=round(statistics.mean(sizes)),
            psnr_db=round(found["psnr_db"], 2), **_figures(looks),
        )  # fmt: skip


if __name__ == "__main__":
    main()
