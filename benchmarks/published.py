"""The paper's way to prepare images, as far as it is documented: image files in, JPEG planes out.

Apart from `published_way`, since each process that a main module starts imports it: torch.
"""

import io
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

P, SIZE, BATCH = 6, 336, 32
SPLITS, SIDE = P * P, SIZE // P
QUALITY = 90
N = torch.arange(SPLITS, dtype=torch.float64)
DCT = (2 * torch.cos(math.pi * N[:, None] * (2 * N + 1) / (2 * SPLITS))).float()  # (36, 36)
INVERSE = torch.linalg.inv(DCT.double()).float()


def pixels(path: Path) -> NDArray[np.uint8]:
    """(336, 336, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def transform(paths: list[Path]) -> torch.Tensor:
    """The spectral planes of a batch, (B, 36, 56, 56, 3) float32."""
    batch = torch.from_numpy(np.stack([pixels(path) for path in paths])).float()
    cut = batch.reshape(-1, SIDE, P, SIDE, P, 3).permute(2, 4, 0, 1, 3, 5)
    planes = DCT @ cut.reshape(SPLITS, -1)
    return planes.reshape(SPLITS, -1, SIDE, SIDE, 3).transpose(0, 1)


def ranges(planes: torch.Tensor, fixed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest value and width of the range of each plane, broadcastable to `planes`."""
    if fixed:
        lowest, highest = 255 * DCT.clamp(max=0).sum(1), 255 * DCT.clamp(min=0).sum(1)
        lowest, highest = lowest.reshape(1, -1, 1, 1, 1), highest.reshape(1, -1, 1, 1, 1)
    else:
        lowest, highest = planes.amin((2, 3, 4), True), planes.amax((2, 3, 4), True)
    return lowest, (highest - lowest).clamp(min=1)


def eight_bits(planes: torch.Tensor, fixed: bool) -> NDArray[np.uint8]:
    """Planes shifted and scaled to 0…255."""
    lowest, width = ranges(planes, fixed)
    return ((planes - lowest) * (255 / width)).round().clamp(0, 255).byte().numpy()


def write(paths: list[Path], out: Path) -> None:
    """The published way for some images: OUT/shard_KK/<name>.jpg. OUT/shard_KK is there."""
    torch.set_num_threads(1)
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        for path, planes in zip(batch, eight_bits(transform(batch), False), strict=True):
            for k, plane in enumerate(planes):
                target = out / f"shard_{k:02d}" / path.name
                Image.fromarray(plane).save(target, "JPEG", quality=QUALITY)


def quality(path: Path, fixed: bool) -> tuple[float, int]:
    """Sum of squared errors of one image rebuilt from its JPEG planes, and bytes of all."""
    planes = transform([path])
    read, size = [], 0
    for plane in eight_bits(planes, fixed)[0]:
        file = io.BytesIO()
        Image.fromarray(plane).save(file, "JPEG", quality=QUALITY)
        size += file.tell()
        read.append(np.asarray(Image.open(file)))
    lowest, width = ranges(planes, fixed)
    values = torch.from_numpy(np.stack(read))[None] * (width / 255) + lowest
    phases = (INVERSE @ values.reshape(SPLITS, -1)).reshape(P, P, SIDE, SIDE, 3)
    image = phases.permute(2, 0, 3, 1, 4).reshape(SIZE, SIZE, 3).round().clamp(0, 255).numpy()
    return float(((image - pixels(path)) ** 2).sum()), size
