"""Planes of 56×56 px from the page cache, each way of reading them, against torchvision's.

    python benchmarks/loader.py [SOURCE] [--samples 20000]

Planes 0, 1 and 35 of sub36: `bare`, the decoder alone in one call; `stock`, ffcv.loader.Loader
with our field; `stream` and `resident`, the trainer's two feeds. Torchvision's ImageFolder reads
the same pictures as JPEG files of 56×56 px, through Pillow and through torchvision.io. All take
as many threads or workers as there are cores. SOURCE: a folder of photographs, repeated up to so
many samples; without it, smoothed noise. `cpu_us` is what a sample costs in all processes: it
hardly depends on what else the machine does, where `per_s` does.
"""

import argparse
import importlib.metadata
import io
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from common import images, linked, noise_images, prepare_quietly, report, seconds
from ffcv.loader import Loader, OrderOption
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import PILToTensor

from pipeline.format.beton import BetonReader
from pipeline.limits import usable_cores
from pipeline.preparation import preparation
from trainer.data.feed import Resident
from trainer.data.field import CHUNK, PlaneField, decode_batch
from trainer.data.loader import ShardLoader
from trainer.data.selection import Prepared

BATCH, SIDE, SPLITS, PLANES = 256, 56, 36, (0, 1, 35)
NOISE = 100  # different pictures
Epoch = Callable[[int], object]
Figures = dict[str, float]


def bare(path: Path) -> Epoch:
    """What no loader can beat: our decoder, all samples in one call."""
    reader = BetonReader(path)
    file = np.memmap(path, np.uint8, "r")
    planes = np.zeros((reader.samples, 3, SIDE, SIDE), np.int8)
    status = np.zeros(reader.samples, np.int32)

    def epoch(number: int) -> None:
        order = np.random.default_rng(number).permutation(reader.samples)
        numba.set_num_threads(usable_cores())
        with numba.parallel_chunksize(CHUNK):
            decode_batch(order, planes, status, reader.rows["f0"], file, usable_cores())
        assert not status.any()

    return epoch


def stock(path: Path) -> Epoch:
    """FFCV's Loader as it comes."""
    loader = Loader(
        str(path), batch_size=BATCH, num_workers=usable_cores(), os_cache=True, drop_last=False,
        order=OrderOption.RANDOM, custom_fields={"image": PlaneField},
    )  # fmt: skip
    return lambda number: [None for _ in loader]


def fed(feed: Any) -> Epoch:
    """One of the trainer's feeds."""
    return lambda number: [
        None for _ in feed.batches(np.random.default_rng(number).permutation(feed.samples))
    ]


def readers(data: Prepared, k: int) -> dict[str, Epoch]:
    """Every way to read a shard, by name."""
    loader = ShardLoader(data, "train", k, batch_size=BATCH, device=torch.device("cpu"))
    path = data.shard_path("train", k)
    return {
        "bare": bare(path),
        "stock": stock(path),
        "stream": fed(loader),
        "resident": fed(Resident(loader)),
    }


def write_small(pictures: Path, root: Path) -> Path:
    """The pictures as JPEG files of 56×56 px, each link a file of its own."""
    encoded: dict[Path, bytes] = {}
    for path in images(pictures):
        original = path.resolve()
        if original not in encoded:
            out = io.BytesIO()
            with Image.open(original) as image:
                image.convert("RGB").resize((SIDE, SIDE)).save(out, "JPEG", quality=90)
            encoded[original] = out.getvalue()
        target = root / path.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded[original])
    return root


def _decoded(path: str) -> torch.Tensor:
    image: torch.Tensor = decode_image(path, ImageReadMode.RGB)
    return image


def folder_loaders(root: Path) -> dict[str, Epoch]:
    """Torchvision's own way, its workers kept, with either of its JPEG decoders."""
    found: dict[str, Epoch] = {}
    for name, data in {
        "pillow": ImageFolder(str(root), PILToTensor()),
        "torchvision_io": ImageFolder(str(root), loader=_decoded),
    }.items():
        loader = DataLoader(
            data, BATCH, shuffle=True, num_workers=usable_cores(), persistent_workers=True
        )
        found[name] = partial(_epoch, loader)
    return found


def _epoch(loader: DataLoader[Any], number: int) -> None:
    for _ in loader:
        pass


def cpu_seconds() -> float:
    """What this process and its workers have used so far."""
    ticks = 0
    for worker in multiprocessing.active_children():
        after_name = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def best_figures(epochs: dict[str, Epoch], samples: int, rounds: int) -> dict[str, Figures]:
    """Of each the best of `rounds` epochs, all in turn, after one each that does not count."""
    best = {name: {"per_s": 0.0, "cpu_us": math.inf} for name in epochs}
    for number in range(rounds + 1):
        for name, epoch in epochs.items():
            cpu = cpu_seconds()
            took = seconds(partial(epoch, number))
            cpu = cpu_seconds() - cpu
            if number:
                best[name]["per_s"] = max(best[name]["per_s"], round(samples / took))
                best[name]["cpu_us"] = min(best[name]["cpu_us"], round(1e6 * cpu / samples, 2))
    return best


def plane_row(
    data: Prepared, k: int, ours: dict[str, Figures], theirs: dict[str, Figures]
) -> dict[str, object]:
    """Bytes a sample of a plane, the figures, and what they are to each of ImageFolder's."""
    with BetonReader(data.shard_path("train", k)) as reader:
        size = round(float(reader.payload_sizes.mean()))
    ratios = {
        f"{name} to {other}": {
            "per_s": round(found["per_s"] / reference["per_s"], 1),
            "cpu": round(reference["cpu_us"] / found["cpu_us"], 1),
        }
        for name, found in ours.items()
        for other, reference in theirs.items()
    }
    return {"k": k, "bytes": size, **ours, "ratios": ratios}


def measure(pictures: Path, root: Path, rounds: int) -> None:
    """Prepare, read in every way, print."""
    prep = preparation("pictures", SPLITS, size=336, calib=0.0)
    data = Prepared(*prepare_quietly(prep, pictures, root, usable_cores()))
    samples = data.manifest.written("train")
    ways = {k: readers(data, k) for k in PLANES}
    epochs = {f"{name} {k}": epoch for k, ours in ways.items() for name, epoch in ours.items()}
    folders = folder_loaders(write_small(pictures, root / "small"))
    torch.set_num_threads(usable_cores())  # FFCV's import leaves one
    found = best_figures(epochs | folders, samples, rounds)
    theirs = {name: found[name] for name in folders}
    report(
        "loader", samples=samples, plane=f"3x{SIDE}x{SIDE} int8, zstd", batch=BATCH,
        torchvision=importlib.metadata.version("torchvision"),
        pillow_simd=importlib.metadata.version("pillow-simd"), imagefolder=theirs,
        planes=[plane_row(data, k, {name: found[f"{name} {k}"] for name in ours}, theirs)
                for k, ours in ways.items()],
    )  # fmt: skip


def main() -> None:
    """Photographs where a folder is named, else noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = args.source or noise_images(root / "noise", SIDE * 6, NOISE)
        with linked(source, -(-args.samples // len(images(source)))) as pictures:
            measure(pictures, root, args.rounds)


if __name__ == "__main__":
    main()
