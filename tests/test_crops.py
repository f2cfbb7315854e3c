"""Whole images as the trainer reads them: their crops by seed, and what damage to them does."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ffcv.libffcv import imdecode
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop

from pipeline.errors import DamagedError
from pipeline.format import manifest
from pipeline.format.beton import ALLOCATION, HEADER, RGB_IMAGE, BetonReader
from pipeline.format.codec import decode_whole
from tests.conftest import RAW, SHORTEST, WHOLE, spectral_here
from trainer.data.crops import RATIO, SCALE, RandomCropDecoder, random_box
from trainer.data.feed import Plan
from trainer.data.loader import ShardLoader
from trainer.data.selection import Prepared
from trainer.process.world import World

CPU = torch.device("cpu")
MASK = 2**64 - 1


def shard_loader(
    folder: Path,
    split: str = "train",
    *,
    random: bool = True,
    five: bool = False,
    batch: int = 16,
    threads: int = 0,
) -> ShardLoader:
    data = Prepared(folder, manifest.load(folder))
    return ShardLoader(
        data, split, 0, batch_size=batch, device=CPU, threads=threads,
        random_crops=random, five_crops=five,
    )  # fmt: skip


def values_of(loader: ShardLoader, order: NDArray[np.int64]) -> NDArray[np.int8]:
    found: NDArray[np.int8] = torch.cat([v.clone() for v, _ in loader.batches(order)]).numpy()
    return found


def decoded(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The images of a shard, whole; JPEG by FFCV's decoder, which is not Pillow's."""
    with BetonReader(path) as reader:
        for sample in range(reader.samples):
            payload, (_, height, width) = reader.payload(sample), reader.shape(sample)
            pixels = np.empty((height, width, 3), np.uint8)
            if reader.codec == "raw":
                pixels[:] = decode_whole(payload, "raw", reader.shape(sample))
            else:
                data = np.frombuffer(payload, np.uint8)
                assert imdecode(data, pixels, height, width, height, width) == 0
            yield pixels


def cropped(loader: ShardLoader, seed: int, epoch: int) -> NDArray[np.int8]:
    """The crop of each sample, in their order, read in another one."""
    order = np.random.default_rng([seed, epoch]).permutation(loader.samples)
    loader.draw(seed, epoch, order)
    return values_of(loader, order)[np.argsort(order)]


def mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def slow_box(seed: int, epoch: int, sample: int, height: int, width: int) -> tuple[int, ...]:
    """Torchvision's rule, in plain Python, drawing from splitmix64."""
    weyl, state = 0x9E3779B97F4A7C15, 0
    for word in (seed, epoch, sample):
        state = mixed(((state ^ word) + weyl) & MASK)

    def uniform(low: float, high: float) -> float:
        nonlocal state
        state = (state + weyl) & MASK
        return low + (high - low) * ((mixed(state) >> 11) / 2**53)

    for _ in range(10):
        target = height * width * uniform(*SCALE)
        aspect = math.exp(uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        where = uniform(0, 1), uniform(0, 1)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(where[0] * (height - h + 1)), int(where[1] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("height", "width"), [(256, 256), (256, 341), (500, 256), (32, 1024), (1, 1), (9, 2), (1, 40)]
)
def test_boxes_are_those_of_the_slow_twin(height: int, width: int) -> None:
    """Also of shapes that are so long that ten tries fail."""
    for sample in range(300):
        key = (sample % 3, sample % 7, sample * 1_000_003)
        box = tuple(map(int, random_box(*key, height, width)))
        assert box == slow_box(*key, height, width)
        assert min(box[:2]) >= 0
        assert min(box[2:]) >= 1
        assert box[0] + box[2] <= height
        assert box[1] + box[3] <= width


@pytest.mark.parametrize(("height", "width"), [(256, 341), (600, 256)])
def test_boxes_are_spread_like_torchvisions(height: int, width: int) -> None:
    """Quantiles of area, aspect and place, and how these go together, over 20,000 draws."""
    torch.manual_seed(0)
    image, draws = torch.empty(3, height, width), 20_000
    theirs = np.array(
        [RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(draws)], np.float64
    )
    ours = np.array([random_box(1, 2, i, height, width) for i in range(draws)], np.float64)

    def shares(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        top, left, h, w = boxes.T
        room_h, room_w = np.maximum(height - h, 1), np.maximum(width - w, 1)
        return np.stack([h * w / (height * width), np.log(w / h), top / room_h, left / room_w])

    at = np.linspace(0.05, 0.95, 19)
    found, wanted = (np.quantile(shares(boxes), at, axis=1) for boxes in (ours, theirs))
    assert np.abs(found - wanted).max() < 0.02
    correlated = [np.corrcoef(shares(boxes)) for boxes in (ours, theirs)]
    assert np.abs(correlated[0] - correlated[1]).max() < 0.04


def test_crops_depend_on_seed_epoch_and_position_alone(data: Path) -> None:
    """Not on threads, batches, order, or numba's and NumPy's global state."""
    folder = data / SHORTEST
    loader = shard_loader(folder)
    first = cropped(loader, 3, 1)
    np.random.seed(99)  # noqa: NPY002 - the point is that global state does not matter
    for seed, epoch in ((3, 2), (4, 1)):
        same = (cropped(loader, seed, epoch) == first).all(axis=(1, 2, 3))
        assert same.mean() < 0.1
    assert (cropped(loader, 3, 1) == first).all()
    assert (cropped(shard_loader(folder, batch=7, threads=1), 3, 1) == first).all()
    some = np.array([70, 5, 33])  # as in an epoch that is entered in its middle
    loader.draw(3, 1, some)
    assert (values_of(loader, some) == first[some]).all()


def test_an_image_that_comes_several_times_is_cropped_otherwise_each_time(data: Path) -> None:
    """Also where several processes share a batch: the same crops as one would see."""
    prepared = Prepared(data / SHORTEST, manifest.load(data / SHORTEST))

    def seen(rank: int, size: int) -> NDArray[np.int8]:
        """(steps, share of a batch, pixels)."""
        world = World(rank, size, torch.device("cpu"))
        plan = Plan(samples=90, batch_size=16, seed=4, world=world, repeats=4)
        own = plan.share.stop - plan.share.start
        loader = ShardLoader(
            prepared, "train", 0, batch_size=own, device=world.device, random_crops=True
        )
        loader.draw(4, 1, plan.positions(2))
        values = values_of(loader, plan.order(1, 2))
        return values.reshape(plan.steps - 2, own, -1)

    whole = seen(0, 1)
    for batch in whole.reshape(len(whole), 4, 4, -1):
        for image in batch.transpose(1, 0, 2):  # four times, in four groups
            assert len(np.unique(image, axis=0)) == 4
    assert (np.concatenate([seen(0, 2), seen(1, 2)], axis=1) == whole).all()


def test_crops_are_parts_of_the_image_resized_by_area(data: Path) -> None:
    """Within what FFCV's fast JPEG decoder differs from Pillow's."""
    found = cropped(shard_loader(data / SHORTEST), 5, 0)
    with BetonReader(data / SHORTEST / "train" / "shard_00.beton") as reader:
        for sample, values in enumerate(found):
            pixels = decode_whole(reader.payload(sample), "jpeg", reader.shape(sample))
            top, left, h, w = random_box(5, 0, sample, *pixels.shape[:2])
            part = pixels[top : top + h, left : left + w]
            wanted = cv2.resize(part, values.shape[1:], interpolation=cv2.INTER_AREA)
            seen = values.transpose(1, 2, 0).astype(np.int16) + 128
            assert np.abs(seen - wanted).mean() < 3, sample


@pytest.mark.parametrize("folder", [SHORTEST, WHOLE, RAW])
def test_evaluation_sees_the_centre(data: Path, folder: str) -> None:
    """As `predict` cuts it; of raw planes every byte."""
    loader = shard_loader(data / folder, "val", random=False)
    values = values_of(loader, np.arange(loader.samples))
    side = values.shape[2]
    with BetonReader(data / folder / "val" / "shard_00.beton") as reader:
        for sample, seen in enumerate(values):
            pixels = decode_whole(reader.payload(sample), reader.codec, reader.shape(sample))
            top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
            wanted = pixels[top : top + side, left : left + side].transpose(2, 0, 1)
            error = np.abs(seen.astype(np.int16) + 128 - wanted)
            assert error.mean() <= (0 if folder == RAW else 3)


@pytest.mark.parametrize("folder", [SHORTEST, WHOLE, RAW])
def test_five_crops_are_corners_and_centre_of_one_image(data: Path, folder: str) -> None:
    """Bit for bit; also of images that are as small as the crop. Read in another order."""
    loader = shard_loader(data / folder, random=False, five=True, batch=7)
    order = np.random.default_rng(3).permutation(loader.samples)
    found = values_of(loader, order)[np.argsort(order)]
    side, margins = found.shape[-1], set()
    for seen, pixels in zip(found, decoded(loader.path), strict=True):
        down, right = pixels.shape[0] - side, pixels.shape[1] - side
        at = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
        wanted = [pixels[top : top + side, left : left + side] for top, left in at]
        assert (seen.transpose(0, 2, 3, 1).view(np.uint8) ^ 128 == np.stack(wanted)).all()
        margins.add((down, right))
    assert len(margins) == (3 if folder == SHORTEST else 1)


@pytest.mark.parametrize(
    ("folder", "damage"),
    [(SHORTEST, damage) for damage in ("bytes", "cut", "pointer", "width", "nothing")]
    + [(WHOLE, damage) for damage in ("bytes", "cut", "width")]
    + [(RAW, damage) for damage in ("cut", "pointer", "width")],
)
def test_a_damaged_image_is_an_error_that_names_it(
    data: Path, tmp_path: Path, folder: str, damage: str
) -> None:
    """FFCV hands out whatever the buffer held before. Raw pixels hold nothing that could tell."""
    copy = Path(shutil.copytree(data / folder, tmp_path / "copy"))
    path = copy / "train" / "shard_00.beton"
    content = bytearray(path.read_bytes())
    with BetonReader(path) as reader:
        pointer, size = int(reader.rows["f0"]["data_ptr"][37]), len(reader.payload(37))
        row_at = HEADER.itemsize + reader._descriptions.nbytes + 37 * reader.rows.itemsize
        size_at = reader._alloc_at + 37 * ALLOCATION.itemsize + 16
    row = {name: row_at + field[1] for name, field in RGB_IMAGE.fields.items()}
    if damage == "bytes":
        content[pointer : pointer + 40] = bytes(40)
    elif damage == "cut":
        content[size_at : size_at + 8] = (size // 2).to_bytes(8, "little")
    elif damage == "pointer":
        content[row["data_ptr"] : row["data_ptr"] + 8] = (2**40).to_bytes(8, "little")
    elif damage == "width":
        content[row["width"] : row["width"] + 2] = (1).to_bytes(2, "little")
    else:
        content[row["width"] : row["height"] + 2] = bytes(4)
    path.write_bytes(content)
    for random, five in ((True, False), (False, False), (False, True)):
        loader = shard_loader(copy, random=random, five=five, batch=1 if random else 16)
        loader.draw(0, 0, np.arange(loader.samples))
        with pytest.raises(DamagedError, match=rf"{path}: sample 37 cannot be read: its"):
            list(loader.batches(np.arange(loader.samples)))


def test_training_draws_other_crops_in_each_epoch_and_repeats(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one recipe end with the same weights, bit for bit."""
    drawn: list[tuple[int, int]] = []
    draw = RandomCropDecoder.draw

    def noted(self: RandomCropDecoder, seed: int, epoch: int, positions: NDArray[np.int64]) -> None:
        drawn.append((seed, epoch))
        draw(self, seed, epoch, positions)

    monkeypatch.setattr(RandomCropDecoder, "draw", noted)
    weights = []
    for runs in (tmp_path / "one", tmp_path / "two"):
        done = spectral_here(
            "train", "--data", data / SHORTEST, "--runs", runs, "--shard", 0, "--name", "x",
            "--recipe", "digits", "--set", "epochs=3", "--set", "seed=5",
            "--set", "model_args.width=8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        weights.append(torch.load(runs / SHORTEST / "x" / "shard_00" / "last.pt")["model"])
    assert drawn == 2 * [(5, 0), (5, 1), (5, 2)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
