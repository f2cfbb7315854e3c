"""`prepare` sub36 against FFCV's own writer, which writes one file of whole images.

    python benchmarks/against_ffcv.py SOURCE [--copies 30] [--runs 3] [--decoder ours|torchvision]
        [--pillow FOLDER]

Both decode the images of SOURCE, linked COPIES times, and squash them to 336 px, by two
processes: with the same function, `ours`, or FFCV's as its users write it, with torchvision's
ImageFolder and Resize; on pillow-simd, as `prepare`, or on the Pillow that FFCV and torchvision
bring along, where FOLDER has it (`pip install --target FOLDER --no-deps pillow==12.1.1`).
`prepare` writes 36 zstd shards, FFCV's DatasetWriter one file of JPEG images of quality 90, not
split. Images/s of `prepare` count its whole run (start of its processes, syncs); FFCV's count no
imports, and it syncs nothing.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import images, linked, prepare_quietly, report, settled_seconds
from numpy.typing import NDArray

from pipeline.format.beton import BetonReader
from pipeline.planes.imaging import load, pixels
from pipeline.preparation import Preparation, preparation

SPLITS, SIZE, WORKERS = 36, 336, 2
TIMEOUT = 1800  # seconds: FFCV's writer waits for ever when one of its processes dies


class Images:
    """(pixels (336, 336, 3) uint8, label) of each image, as FFCV's writer asks for them."""

    def __init__(self, paths: list[Path], prep: Preparation) -> None:
        self.paths, self.prep = paths, prep

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        path = self.paths[index]
        return pixels(load(path.read_bytes(), self.prep)[0]), int(path.parent.name.split("_")[1])


def folder(source: Path) -> Any:
    """The same, as FFCV's users give it to its writer."""
    from torchvision.datasets import ImageFolder  # not at the top: workers of `prepare`, which
    from torchvision.transforms import Resize  # import this file again, have no use for torch

    return ImageFolder(str(source), Resize((SIZE, SIZE)))


def options() -> Preparation:
    """sub36 of 336 px, all else by default."""
    return preparation("photos", SPLITS, size=SIZE)


def ffcv_writes(source: Path, target: Path, decoder: str) -> None:
    """In a process of its own: print Pillow's version, and the seconds that FFCV's writer takes."""
    import PIL
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    data = Images(images(source), options()) if decoder == "ours" else folder(source)
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    writer = DatasetWriter(str(target), fields, num_workers=WORKERS)
    print(PIL.__version__, settled_seconds(lambda: writer.from_indexed_dataset(data)))


def ffcv(source: Path, decoder: str, pillow: Path | None) -> tuple[float, int, int, str]:
    """Seconds, bytes of the file, those of its images: it is padded to whole 8 MiB pages; and
    the version of Pillow in use.
    """
    environment = dict(os.environ) | ({"PYTHONPATH": str(pillow)} if pillow else {})
    with tempfile.TemporaryDirectory() as out:
        target = Path(out) / "images.beton"
        command = [sys.executable, __file__, str(source), "--decoder", decoder]
        command += ["--ffcv-writes", str(target)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env=environment,
        )  # fmt: skip
        try:
            printed, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it waits for
            _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"FFCV's writer did not finish:\n{errors}")
        payload = int(BetonReader(target).payload_sizes.sum())
        version, took = printed.split()[-2:]
        return float(took), target.stat().st_size, payload, version


def ours(source: Path) -> tuple[float, int]:
    """Seconds, and bytes of all shards."""
    with tempfile.TemporaryDirectory() as out:
        took = settled_seconds(lambda: prepare_quietly(options(), source, Path(out), WORKERS))
        return took, sum(path.stat().st_size for path in Path(out).rglob("*.beton"))


def main() -> None:
    """Pairs of runs, then ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--copies", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--decoder", choices=["ours", "torchvision"], default="ours")
    parser.add_argument("--pillow", type=Path, help="folder of another Pillow for FFCV's process")
    parser.add_argument("--ffcv-writes", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ffcv_writes:
        ffcv_writes(args.source, args.ffcv_writes, args.decoder)
        return
    with linked(args.source, args.copies) as source:
        count = len(images(source))
        pairs = [(ours(source), ffcv(source, args.decoder, args.pillow)) for _ in range(args.runs)]
    (_, our_bytes), (_, file_bytes, jpeg_bytes, pillow) = pairs[0]
    report(
        "against_ffcv", images=count, runs=args.runs, splits=SPLITS, px=SIZE, workers=WORKERS,
        ffcv_decoder=args.decoder, ffcv_pillow=pillow,
        images_per_s=round(statistics.median(count / mine for (mine, _), _ in pairs)),
        ffcv_images_per_s=round(statistics.median(count / theirs for _, (theirs, *_) in pairs)),
        ratio=round(statistics.median(theirs / mine for (mine, _), (theirs, *_) in pairs), 3),
        bytes_an_image=round(our_bytes / count),
        bytes_a_sample_and_plane=round(our_bytes / count / SPLITS),
        ffcv_bytes_an_image=round(file_bytes / count),
        ffcv_jpeg_bytes_an_image=round(jpeg_bytes / count),
    )  # fmt: skip


if __name__ == "__main__":
    main()
