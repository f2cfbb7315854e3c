"""Planes of 56×56 from the page cache: the stock FFCV Loader with our field against torchvision's.

    python benchmarks/loader.py [--samples 20000]

Both read the same pictures, planes/s with as many workers as there are cores; torchvision's
ImageFolder reads 56×56 JPEG files. Noise that was smoothed stands in for photographs.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import prepare_quietly, report, seconds
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from pipeline.options import preparation
from trainer.loader import ShardLoader, cpu_count
from trainer.selection import Prepared

BATCH = 256


def write(root: Path, samples: int) -> Path:
    """`samples` JPEG files of 112×112 px, in class folders; 100 different ones."""
    rng = np.random.default_rng(0)
    for i in range(samples):
        folder = root / "train" / f"class_{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{i:06d}.jpg"
        if i >= 100:
            path.hardlink_to(root / "train" / f"class_{i % 10}" / f"{i % 100:06d}.jpg")
            continue
        small = Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        small.resize((112, 112), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


def folder_loader(root: Path) -> DataLoader:  # type: ignore[type-arg]
    """Torchvision's own way, over files of 56×56 px."""
    for path in sorted((root / "train").rglob("*.jpg")):
        target = root / "small" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize((56, 56)).save(target, quality=90)
    data = ImageFolder(str(root / "small"), PILToTensor())
    return DataLoader(data, BATCH, shuffle=True, num_workers=cpu_count())


def main() -> None:
    """One warm-up epoch each, then three that count, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20000)
    samples = parser.parse_args().samples
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder) / "images", samples)
        prep = preparation("planes", 4, size=112, calib=0.0)
        directory, manifest = prepare_quietly(prep, root, Path(folder), cpu_count())
        ours = ShardLoader(
            Prepared(directory, manifest), "train", 0, batch_size=BATCH,
            device=torch.device("cpu"), train=True,
        )  # fmt: skip
        theirs = folder_loader(root)
        rates: dict[str, list[float]] = {"ours": [], "theirs": []}
        for epoch in range(4):
            took = seconds(lambda epoch=epoch: [None for _ in ours.epoch(0, epoch)])
            other = seconds(lambda: [None for _ in theirs])
            if epoch:
                rates["ours"].append(len(ours) * BATCH / took)
                rates["theirs"].append(samples / other)
    best = {name: max(values) for name, values in rates.items()}
    report(
        "loader", samples=samples, plane="3x56x56 int8, zstd",
        planes_per_s=round(best["ours"]), planes_per_s_and_core=round(best["ours"] / cpu_count()),
        imagefolder_images_per_s=round(best["theirs"]),
        ratio=round(best["ours"] / best["theirs"], 1),
    )  # fmt: skip


if __name__ == "__main__":
    main()
