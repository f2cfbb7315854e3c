"""Damaged images and archives, made from sound ones, for the code that has to bear them.

`python -m tests.fuzz SEED FIRST COUNT [TARGET]` tries so many inputs in this process and says on
stdout which one it is at; `tests/test_fuzz.py` watches it. The same numbers make the same inputs.
"""

import gzip
import io
import json
import pickle
import random
import re
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import traceback
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, features
from scipy.io import savemat

from pipeline.errors import BadImageError, SourceError
from pipeline.planes.imaging import load
from pipeline.preparation import preparation
from pipeline.sources import recognise
from pipeline.sources.containers.gzip import Gunzip
from pipeline.sources.containers.pickles import load_pickle
from pipeline.sources.containers.tar import iter_members
from pipeline.sources.index import Place
from pipeline.sources.junk import junk_in
from pipeline.sources.layouts.ilsvrc import read_devkit
from pipeline.sources.reading import Feeder, Reader
from pipeline.sources.scan import Scan

MOST_BYTES = 4 << 30  # that an input may take beyond what the process has
_LONGEST = 6000  # characters of an error
# What libraries say of their own workings: a reason says in words what is wrong
_INTERNAL = re.compile(
    r"unpack_from|codec can't|invalid literal|[a-z]Error|Errno|out of range|reshape|0x[0-9a-f]{4}"
    "|thrift|object| buffer|decompressing"
)
_EDGES = (
    0,
    1,
    2,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)


# --- sound inputs -------------------------------------------------------------------------------


def _picture(mode: str, width: int = 23, height: int = 17) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    colours = np.stack([x * 9, y * 13, (x * y) % 256], 2).astype(np.uint8)
    return Image.fromarray(colours).convert(mode)


def _coded(form: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    _picture(mode).save(file, form, **options)
    return file.getvalue()


def _animated(form: str) -> bytes:
    return _coded(form, save_all=True, append_images=[_picture("RGB", 23, 17)] * 2)


def _jpegs() -> list[bytes]:
    return [
        _coded("JPEG"), _coded("JPEG", "L", quality=50), _coded("JPEG", "CMYK"),
        _coded("JPEG", progressive=True, subsampling=2, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        _coded("JPEG", restart_marker_blocks=1), _animated("MPO"),
    ]  # fmt: skip


def _gifs() -> list[bytes]:
    return [_coded("GIF"), _coded("GIF", "L", interlace=0), _animated("GIF")]


def _pngs() -> list[bytes]:
    deep = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 150)
    file = io.BytesIO()
    deep.save(file, "PNG")
    modes = ("RGB", "RGBA", "L", "LA", "P", "1")
    return [*(_coded("PNG", mode) for mode in modes), file.getvalue(), _animated("PNG")]


def _webps() -> list[bytes]:
    lossy = [_coded("WEBP"), _coded("WEBP", "RGBA", quality=30)]
    return [*lossy, _coded("WEBP", lossless=True), _animated("WEBP")]


def _tiffs() -> list[bytes]:
    packings = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    found = [_coded("TIFF", compression=packing) for packing in packings]
    return [*found, _coded("TIFF", "CMYK"), _coded("TIFF", "1", compression="group4")]


def _tar(files: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _tars() -> list[bytes]:
    files = {f"n01/{i}{'x' * 60 * i}.jpg": bytes([i]) * 300 * i for i in range(5)}
    forms = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    found = [_tar(files if form else {"a.jpg": b"a", "b.jpg": b"b" * 600}, form) for form in forms]
    kinds = (tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE, tarfile.DIRTYPE, tarfile.XGLTYPE)
    for kind in kinds:
        other = bytearray(found[1])
        other[156:157] = kind
        found.append(_summed(bytes(other)))
    return found


def _whole() -> list[bytes]:
    classes = {f"{c}.tar": _tar({f"{i}.jpg": b"jpeg" * 40 * i for i in range(3)}) for c in "abc"}
    return [_tar(classes)]


def _samples() -> list[bytes]:
    picture = _coded("JPEG")
    labels = {"cls": b"1", "json": b'{"label": 2}', "txt": b"0"}
    return [
        _tar({f"{i}.{end}": data for i in range(3) for end, data in (("jpg", picture), pair)})
        for pair in labels.items()
    ]


def _gzips() -> list[bytes]:
    text = b" ".join(b"word%d" % (i * i % 999) for i in range(3000))
    return [gzip.compress(text), gzip.compress(text, 0), gzip.compress(text[:99]) * 3 + bytes(50)]


def _tables() -> list[bytes]:
    found = []
    pictures = [_coded("JPEG"), _coded("PNG")] * 3
    for options in ({"compression": "zstd"}, {"compression": "none", "row_group_size": 2}):
        for column in (pictures, [{"bytes": p, "path": "a"} for p in pictures]):
            file = io.BytesIO()
            pq.write_table(pa.table({"image": column, "label": [0, 1, 2] * 2}), file, **options)
            found.append(file.getvalue())
    return found


def _arrays() -> list[bytes]:
    images = bytes((0, 0, 8, 3)) + struct.pack(">3I", 5, 4, 3) + bytes(range(60))
    return [images, gzip.compress(images)]


def _dictionaries() -> list[bytes]:
    content = {b"data": np.arange(3072 * 2).astype(np.uint8).reshape(2, -1), b"labels": [1, 2],
               b"filenames": [b"a.png", b"b.png"], b"batch_label": b"1 of 5"}  # fmt: skip
    return [pickle.dumps(content, protocol) for protocol in range(6)]


def _devkits() -> list[bytes]:
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    rows = np.array([(i + 1, f"n0{i}", "a bird") for i in range(4)], dtype=kinds)
    found = []
    for packed in (False, True):
        file = io.BytesIO()
        savemat(file, {"synsets": rows.reshape(-1, 1)}, do_compression=packed)
        truth = "data/ILSVRC2012_validation_ground_truth.txt"
        found.append(_tar({"data/meta.mat": file.getvalue(), truth: b"1\n2\n4\n"}))
    return found


# --- damage -------------------------------------------------------------------------------------


def damaged(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Some of the damage that disks, networks and enemies do."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at, size = (
            rng.randrange(len(made) + 1),
            min(rng.choice((1, 2, 4, 8, 16, 100, 512)), len(made)),
        )
        match rng.randrange(9):
            case 0 | 1:
                made[at : at + 1] = bytes(
                    [(made[at] if at < len(made) else 0) ^ 1 << rng.randrange(8)]
                )
            case 2:
                made[at : at + 1] = rng.randbytes(1)
            case 3:
                order, width = rng.choice("<>"), rng.choice("BHI")
                number = rng.choice(_EDGES) & (1 << 8 * struct.calcsize(width)) - 1
                made[at : at + struct.calcsize(width)] = struct.pack(order + width, number)
            case 4:
                del made[at : at + size]
            case 5:
                made[at:at] = made[at : at + size]
            case 6:
                made[at : at + size] = rng.randbytes(size) if rng.random() < 0.5 else bytes(size)
            case 7:
                other = rng.choice(others)
                start = rng.randrange(len(other))
                made[at : at + size] = other[start : start + size]
            case 8 if rng.random() < 0.3:
                del made[at:]
    return bytes(made)


def _summed(data: bytes) -> bytes:
    """Headers of a tar with right checksums, so that what else they say is believed."""
    made = bytearray(data)
    for at in range(0, len(made) - 511, 512):
        block = made[at : at + 512]
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 256 + sum(block[156:])
            made[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(made)


def _checked(data: bytes) -> bytes:
    """Chunks of a PNG with right checksums."""
    made, at = bytearray(data), 8
    while at + 12 <= len(made):
        size = int.from_bytes(made[at : at + 4], "big")
        if at + 12 + size > len(made):
            break
        made[at + 8 + size : at + 12 + size] = struct.pack(
            ">I", zlib.crc32(made[at + 4 : at + 8 + size])
        )
        at += 12 + size
    return bytes(made)


# --- what has to bear it ------------------------------------------------------------------------


def _decode(data: bytes, folder: Path) -> str | None:
    try:
        image, _ = load(data, preparation("toy", 4, size=16))
    except BadImageError as error:
        return str(error).encode().decode()  # it goes into samples.parquet
    assert (image.mode, image.size) == ("RGB", (16, 16))
    return None


def _walk(data: bytes, folder: Path) -> str | None:
    """What is listed without an error is what the standard library lists."""
    try:
        found = [(m.name, m.offset, m.size) for m in iter_members(io.BytesIO(data), "it")]
    except SourceError as error:
        return str(error)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        told = [(m.name, m.offset_data, m.size) for m in tar if not m.isdir()]
    told = [one for one in told if not junk_in(one[0])]
    assert [one[1:] for one in found] == [one[1:] for one in told], (found, told)
    # it reads names beyond their sizes, up to a zero
    assert all(theirs[0].startswith(ours[0]) for ours, theirs in zip(found, told, strict=True))
    assert all(offset + size <= len(data) for _, offset, size in found), found
    return None


def _inflate(data: bytes, folder: Path) -> str | None:
    path = folder / "it.gz"
    path.write_bytes(data)
    try:
        with Gunzip(path) as stream:
            found = stream.read(1 << 26)
    except SourceError as error:
        return str(error)
    assert found == gzip.decompress(data)
    return None


def _unpickle(data: bytes, folder: Path) -> str | None:
    try:
        assert isinstance(load_pickle(data, "it"), dict)
    except SourceError as error:
        return str(error)
    return None


def _devkit(data: bytes, folder: Path) -> str | None:
    (folder / "devkit").write_bytes(data)
    try:
        read_devkit(folder / "devkit")
    except SourceError as error:
        return str(error)
    return None


def _source(*names: str, beside: Callable[[Path], None] = lambda folder: None) -> "Attempt":
    """The input as a file of a source: it is listed and read, or refused."""

    def attempt(data: bytes, folder: Path) -> str | None:
        root = folder / "source"
        root.mkdir()
        beside(root)
        for name in names:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(data)
        scan = Scan(folder, root, lambda count, note: None)
        try:
            recognise(root).scan(scan)
            assert read_all(scan) == scan.summary.rows
        except SourceError as error:
            return str(error)
        return None

    return attempt


def read_all(scan: Scan) -> int:
    """How many images of a source could be read."""
    root, containers = scan.root, scan.summary.containers
    reader, feeder = Reader(root, containers), Feeder(root, containers, scan.folder)
    rows = 0
    for batch in scan.batches():
        for row in batch.to_pylist():
            place = Place(row["file"], row["member"], row["offset"], row["size"])
            read = feeder.read if feeder.feeds(place) else reader.read
            assert isinstance(read(place), bytes)
            rows += 1
    return rows


def _mnist(folder: Path) -> None:
    images, _ = _arrays()
    for split, kind, data in (
        ("t10k", "images-idx3", images),
        ("train", "labels-idx1", bytes((0, 0, 8, 1, 0, 0, 0, 5, 0, 1, 2, 3, 4))),
        ("t10k", "labels-idx1", bytes((0, 0, 8, 1, 0, 0, 0, 5, 0, 1, 2, 3, 4))),
    ):
        (folder / f"{split}-{kind}-ubyte").write_bytes(data)


def _batches(folder: Path) -> None:
    (folder / "cifar-10-batches-py").mkdir()
    batch, names = _dictionaries()[2], [f"class {i}" for i in range(10)]
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / "cifar-10-batches-py" / name).write_bytes(batch)
    (folder / "cifar-10-batches-py" / "batches.meta").write_bytes(
        pickle.dumps({"label_names": names})
    )


Attempt = Callable[[bytes, Path], str | None]  # why it is refused; None: it is taken
Mend = Callable[[bytes], bytes]
# Sound inputs, what is done with damaged ones, and what makes half of the damage go deeper
TARGETS: dict[str, tuple[Callable[[], list[bytes]], Attempt, Mend]] = {
    "jpeg": (_jpegs, _decode, bytes),
    "png": (_pngs, _decode, _checked),
    "webp": (_webps, _decode, bytes),
    "gif": (_gifs, _decode, bytes),
    "bmp": (lambda: [_coded("BMP", mode) for mode in ("RGB", "RGBA", "L", "1")], _decode, bytes),
    "tiff": (_tiffs, _decode, bytes),
    "ppm": (lambda: [_coded("PPM", mode) for mode in ("RGB", "L", "1")], _decode, bytes),
    "tar": (_tars, _walk, _summed),
    "tar of tars": (_whole, _source("all.tar"), _summed),
    "tar.gz": (_whole, _source("all.tar.gz"), lambda data: gzip.compress(_summed(data), 1)),
    "class tars": (_tars, _source("n01.tar", "n02.tar"), _summed),
    "webdataset": (_samples, _source("train-0.tar"), _summed),
    "gzip": (_gzips, _inflate, bytes),
    "parquet": (_tables, _source("data/train-0.parquet"), bytes),
    "idx": (_arrays, _source("train-images-idx3-ubyte", beside=_mnist), bytes),
    "devkit": (_devkits, _devkit, lambda data: gzip.compress(_summed(data), 1)),
    "pickle": (_dictionaries, _unpickle, bytes),
    "cifar": (_dictionaries, _source("cifar-10-batches-py/data_batch_3", beside=_batches), bytes),
}  # fmt: skip
if features.check("avif"):
    TARGETS["avif"] = (lambda: [_coded("AVIF"), _coded("AVIF", "RGBA")], _decode, bytes)


@cache
def _sound(target: str) -> list[bytes]:
    return TARGETS[target][0]()


def made(target: str, seed: int, number: int) -> bytes:
    """Input `number` of a target."""
    rng = random.Random(f"{seed} {target} {number}")
    sound = _sound(target)
    data = damaged(rng.choice(sound), sound, rng)
    return TARGETS[target][2](data) if rng.random() < 0.5 else data


def main(seed: int, first: int, count: int, *chosen: str) -> None:
    """Try inputs, those of all targets in turn."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = MOST_BYTES + pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    targets = list(chosen or TARGETS)
    folder = Path(tempfile.mkdtemp())
    for number in range(first, first + count):
        target = targets[number % len(targets)]
        print(f"at {number} {target}", flush=True)
        inner = folder / "one"
        inner.mkdir()
        try:
            said = TARGETS[target][1](made(target, seed, number), inner)
            assert said is None or 0 < len(said) < _LONGEST, said
            assert not _INTERNAL.search(said or ""), said
        except BaseException:
            print(f"found {number} {json.dumps(traceback.format_exc())}", flush=True)
        shutil.rmtree(inner)
    folder.rmdir()
    print("end", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
