"""Time and memory to the first random batch out of a shard of many samples, ours and FFCV's.

    python benchmarks/open.py [--samples 14200000] [--runs 3]

Ours: a zstd shard of 3×56×56 planes, through `ShardLoader`. FFCV's: the same planes in FFCV's raw
image field and read by its Loader alone, with a 20th of the samples; its constructor loops over
them in Python, so `ffcv_extrapolated_…` are linear in what exceeds a small shard. Tables are of
full size; samples share a few frames (zstd) or overlap (raw), so pictures come from the page
cache. Each figure is from a fresh process that has read a small shard before: imports
(`import_s`) and compiling (`compile_s`: the small shard's first batch) are not in `first_batch_s`.
Peak memory is the process's, with imports: VmHWM, in MB of 10⁶ bytes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import prepare_quietly, report
from PIL import Image

from pipeline.format.beton import (
    ALLOCATION,
    FIELD,
    HEADER,
    MODE_RAW,
    PAGE,
    RGB_IMAGE,
    TYPE_INT,
    TYPE_RGB_IMAGE,
    VERSION,
    BetonReader,
    ImageField,
)
from pipeline.format.manifest import Manifest
from pipeline.preparation import preparation

BATCH, SMALL = 256, 512
SIDE = 56
APART = 16
FEWER = 20  # FFCV's file has so many times fewer samples
TABLES_AT = HEADER.itemsize + 2 * FIELD.itemsize


def main() -> None:
    """Write the four shards, then measure in fresh processes, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=14_200_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        kind, small, large = args.measure
        print(json.dumps(measure(kind, Path(small), Path(large))))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small, manifest = prepare_small(root)
        large = enlarge(small, manifest, root / "large", args.samples)
        for name, samples in (("small", SMALL), ("large", args.samples // FEWER)):
            write_raw(root / f"{name}.beton", samples)
        zstd, raw = [], []
        for _ in range(args.runs):
            zstd.append(fresh("zstd", small, large))
            raw.append(fresh("raw", root / "small.beton", root / "large.beton"))
    report(
        "open", samples=args.samples, plane="3x56x56 int8, zstd", batch=BATCH, runs=args.runs,
        **medians(zstd), ffcv_samples=args.samples // FEWER,
        **{f"ffcv_{name}": value for name, value in medians(raw).items()},
        ffcv_extrapolated_s=round(extrapolated(raw, "small_s", "first_batch_s"), 1),
        ffcv_extrapolated_peak_mb=round(extrapolated(raw, "before_mb", "peak_mb")),
    )  # fmt: skip


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}


def extrapolated(rows: list[dict[str, float]], base: str, figure: str) -> float:
    """What all samples would give: `base` stays, the rest grows with the samples."""
    return statistics.median(row[base] + FEWER * (row[figure] - row[base]) for row in rows)


def prepare_small(root: Path) -> tuple[Path, Manifest]:
    """A prepared directory of smoothed noise, `SMALL` samples."""
    rng = np.random.default_rng(0)
    (root / "images" / "class").mkdir(parents=True)
    for i in range(SMALL):
        noise = Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        large = noise.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
        large.save(root / "images" / "class" / f"{i}.jpg", quality=90)
    prep = preparation("planes", 4, size=2 * SIDE, calib=0.0)
    return prepare_quietly(prep, root / "images", root, workers=2)


def enlarge(small: Path, manifest: Manifest, directory: Path, samples: int) -> Path:
    """A directory whose shard 0 has `samples` samples, over and over those of `small`."""
    name = manifest.shard("train", 0)
    reader = BetonReader(small / name)
    payloads = [reader.payload(i) for i in range(reader.samples)]
    data_at = pages(TABLES_AT + samples * reader.rows.itemsize)
    sizes = np.array([len(payload) for payload in payloads])
    rows = reader.rows.copy()
    rows["f0"]["ptr"] = data_at + np.cumsum(sizes) - sizes
    head = np.frombuffer((small / name).read_bytes()[:TABLES_AT], np.uint8).copy()
    header = head[: HEADER.itemsize].view(HEADER)
    header["num_samples"], header["alloc_table_ptr"] = samples, data_at + sizes.sum()
    (directory / name).parent.mkdir(parents=True)
    with (directory / name).open("wb") as file:
        file.write(head.tobytes())
        for start in range(0, samples, len(rows)):
            file.write(rows[: samples - start].tobytes())
        file.seek(data_at)
        file.write(b"".join(payloads))
    counts = {"train": {"indexed": samples, "written": samples, "quarantined": 0}}
    replace(manifest, counts=manifest.counts | counts).save(directory)
    return directory


def write_raw(path: Path, samples: int) -> None:
    """FFCV's raw image field and its allocation table. Pages lie as ever, but in each one
    the images, all black, overlap but for `APART` bytes; the rest of it is a hole.
    """
    field = ImageField(TYPE_RGB_IMAGE, b"", RGB_IMAGE, MODE_RAW)
    size = SIDE * SIDE * 3
    data_at = pages(TABLES_AT + samples * field.row.itemsize)
    per_page = PAGE // size  # no sample straddles a page
    index = np.arange(samples)
    pointers = data_at + index // per_page * PAGE + index % per_page * APART
    rows = np.zeros(samples, field.row)
    rows["f0"]["data_ptr"], rows["f0"]["mode"] = pointers, MODE_RAW
    rows["f0"]["width"] = rows["f0"]["height"] = SIDE
    table = np.zeros(samples, ALLOCATION)
    table["sample_id"], table["ptr"], table["size"] = index, pointers, size
    table_at = int(pointers[-1]) + size
    header, fields = np.zeros(1, HEADER), np.zeros(2, FIELD)
    header[0] = (VERSION, 2, PAGE, samples, table_at)
    described = ((b"image", TYPE_RGB_IMAGE), (b"label", TYPE_INT))
    for field_row, (name, type_id) in zip(fields, described, strict=True):
        field_row["type_id"] = type_id
        field_row["name"][: len(name)] = np.frombuffer(name, np.uint8)
    with path.open("wb") as file:
        for part in (header, fields, rows):
            file.write(part.tobytes())
        for page in range(data_at, table_at, PAGE):
            file.seek(page)
            file.write(bytes(min(per_page * APART + size, table_at - page)))
        file.seek(table_at)
        file.write(table.tobytes())


def pages(size: int) -> int:
    """`size` rounded up to whole pages, in bytes."""
    return -(-size // PAGE) * PAGE


def fresh(kind: str, small: Path, large: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, str(small), str(large)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(kind: str, small: Path, large: Path) -> dict[str, float]:
    """Seconds and MB; see the module's docstring. `small_s`: the small shard once more."""
    start = time.perf_counter()
    if kind == "zstd":
        import trainer.data.loader  # noqa: F401
    else:
        import ffcv.loader  # noqa: F401
    imported = time.perf_counter() - start
    first = ours if kind == "zstd" else stock
    compiled, again = first(small), first(small)
    before = peak_mb()
    return {"first_batch_s": first(large), "peak_mb": peak_mb(), "before_mb": before,
            "small_s": again, "compile_s": compiled, "import_s": imported}  # fmt: skip


def ours(directory: Path) -> float:
    """Seconds from nothing open to the first batch, a prepared directory through `ShardLoader`."""
    import torch

    from trainer.data.loader import ShardLoader
    from trainer.data.selection import select

    start = time.perf_counter()
    loader = ShardLoader(
        select(directory), "train", 0, batch_size=BATCH, device=torch.device("cpu")
    )
    batches = loader.batches(np.random.default_rng(0).permutation(loader.samples))
    images, _ = next(batches)
    took = time.perf_counter() - start
    assert images.shape == (BATCH, 3, SIDE, SIDE)
    assert images.any()
    batches.close()
    return took


def stock(path: Path) -> float:
    """The same of a raw file through FFCV's Loader as it comes."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    start = time.perf_counter()
    loader = Loader(
        str(path), batch_size=BATCH, os_cache=True, order=OrderOption.RANDOM, seed=0,
        pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()],
                   "label": [IntDecoder(), ToTensor()]},
    )  # fmt: skip
    iterator = iter(loader)
    images, _ = next(iterator)
    took = time.perf_counter() - start
    assert images.shape == (BATCH, SIDE, SIDE, 3)
    iterator.close()
    iterator.join()
    return took


def peak_mb() -> float:
    """Peak resident memory of this process; ru_maxrss would count that of the one before exec."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
