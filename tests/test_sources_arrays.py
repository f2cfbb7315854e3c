"""CIFAR archives and idx files, in small: official labels, official pixels, or a clear no."""

import collections
import gzip
import io
import itertools
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.console import stopped_by_signals
from pipeline.errors import SourceError, StoppedError
from pipeline.sources.containers.cifar import BINARY, PYTHON, Variant
from pipeline.sources.containers.pickles import load_pickle
from pipeline.stage.samples import _coded
from tests.conftest import ROOT, photograph
from tests.listing import listing

Bytes = NDArray[np.uint8]
PER_FILE = 7


def pictures(count: int, side: int, seed: int) -> Bytes:
    """(count, side, side, 3)"""
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(photograph(rng, side, side)) for _ in range(count)])


def python2(value: object) -> bytes:
    """Opcodes by which Python 2 writes a value with protocol 2: its strings are bytes."""
    match value:
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int():
            return b"J" + struct.pack("<i", value)
        case list():
            return b"](" + b"".join(map(python2, value)) + b"e"
        case dict():
            return b"}(" + b"".join(python2(v) for pair in value.items() for v in pair) + b"u"
        case np.ndarray():
            made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + python2(-1) * 2
            shape = b"".join(map(python2, value.shape)) + b"\x86"
            return (
                made + b"(K\x01" + shape + dtype + b"K\x00tb\x89" + python2(value.tobytes()) + b"tb"
            )
    raise AssertionError(value)


def protocol_2(value: object) -> bytes:
    return b"\x80\x02" + python2(value) + b"."


class Cifar:
    """The content of one of the four archives, file by file."""

    def __init__(self, variant: Variant, dump: Callable[[object], bytes] = protocol_2) -> None:
        self.variant = variant
        self.names = [
            b"%s_%02d" % (b"zebra" if i % 2 else b"apple", i) for i in range(variant.classes)
        ]
        rng = np.random.default_rng(5)
        self.images, self.labels, self.files = {}, {}, {}
        for seed, name in enumerate((*variant.train, variant.test)):
            self.images[name] = pictures(PER_FILE, 32, seed)
            self.labels[name] = rng.integers(0, variant.classes, PER_FILE).tolist()
            planes = self.images[name].transpose(0, 3, 1, 2).reshape(PER_FILE, -1)
            self.files[name] = self.encoded(planes, self.labels[name], dump)
        self.files[variant.names] = (
            dump({variant.names_key.encode(): self.names})
            if variant.label_key
            else b"\n".join(self.names) + b"\n\n"
        )

    def encoded(self, planes: Bytes, labels: list[int], dump: Callable[[object], bytes]) -> bytes:
        if self.variant.label_key:
            return dump(
                {b"data": planes, self.variant.label_key.encode(): labels, b"x": b"a batch"}
            )
        coarse = np.full((PER_FILE, self.variant.label_bytes - 1), 250)
        return np.hstack([coarse, np.array(labels)[:, None], planes]).astype(np.uint8).tobytes()

    def unpack(self, folder: Path) -> Path:
        (folder / self.variant.folder).mkdir(parents=True)
        for name, data in self.files.items():
            (folder / self.variant.folder / name).write_bytes(data)
        return folder / self.variant.folder

    def pack(self, folder: Path) -> Path:
        """Out of order, as the official one, and with a file that is no data."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.variant.archive
        with tarfile.open(path, "w:gz") as tar:
            for name, data in [*reversed(self.files.items()), ("readme.html", b"<html>")]:
                member = tarfile.TarInfo(f"{self.variant.folder}/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return path

    def check(self, root: Path, folder: Path) -> None:
        """Every image is where it belongs, with its official label."""
        found = listing(root, folder)
        assert found.summary.classes == [name.decode() for name in self.names]
        number = {"train": 0, "val": 0}
        expected = {}
        for name in (*self.variant.train, self.variant.test):
            split = "val" if name == self.variant.test else "train"
            for image, label in zip(self.images[name], self.labels[name], strict=True):
                sample = f"{split}/{self.names[label].decode()}/{number[split]}"
                expected[sample] = (label, image.tobytes())
                number[split] += 1
        assert {key: (row.label, row.data) for key, row in found.rows.items()} == expected


@pytest.mark.parametrize("variant", [*PYTHON, *BINARY], ids=lambda v: v.form)
@pytest.mark.parametrize("way", ["archive", "beside", "folder", "within", "renamed"])
def test_cifar_has_its_official_labels_and_pixels(
    variant: Variant, way: str, tmp_path: Path
) -> None:
    """However it lies there; ids are those of rows, the same for all variants."""
    cifar = Cifar(variant)
    root = cifar.pack(tmp_path / "a") if way != "folder" else cifar.unpack(tmp_path / "a")
    if way == "beside":
        root = root.parent
    elif way == "within":
        root.unlink()
        root = cifar.unpack(tmp_path / "b").parent
    elif way == "renamed":
        root = root.rename(tmp_path / "download")
    cifar.check(root, tmp_path / "index")


def test_the_unpacked_folder_is_read_where_the_archive_lies_beside_it(tmp_path: Path) -> None:
    cifar = Cifar(PYTHON[0])
    cifar.pack(tmp_path / "a").write_bytes(b"not whole")
    cifar.unpack(tmp_path / "a")
    cifar.check(tmp_path / "a", tmp_path / "index")


def test_two_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    Cifar(PYTHON[0]).unpack(tmp_path / "a")
    Cifar(BINARY[1]).pack(tmp_path / "a")
    with pytest.raises(SourceError, match=r"CIFAR-10 and CIFAR-100: name one of .*binary.tar.gz"):
        listing(tmp_path / "a", tmp_path / "index")


def test_pickles_of_either_python_are_read() -> None:
    """Python 3 writes arrays for protocol 2 in its own way."""
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = {b"data": array, b"labels": [1, 2, 3]}
    assert np.array_equal(pickle.loads(protocol_2(content), encoding="bytes")[b"data"], array)
    for data in (protocol_2(content), *(pickle.dumps(content, protocol=p) for p in range(5))):
        found = load_pickle(data, "here")
        assert np.array_equal(found["data"], array)
        assert found["labels"] == [1, 2, 3]
    turned = load_pickle(pickle.dumps({"data": np.asfortranarray(array)}, protocol=2), "here")
    assert np.array_equal(turned["data"], array)


@pytest.mark.parametrize(
    "bomb",
    [b"\x80\x02}r\xff\xff\xff\xff.", b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b"."],
    ids=["memo", "bytearray"],
)
def test_a_few_bytes_do_not_take_all_memory(bomb: bytes) -> None:
    """Python's reader in C takes 16 bytes for each number up to the one that a memo names."""
    code = (
        "import resource, sys; from pipeline.sources.containers.pickles import load_pickle\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from pipeline.errors import SourceError\n"
        "try: print(load_pickle(sys.stdin.buffer.read(), 'it'))\n"
        "except SourceError as error: assert 'Memory' not in repr(error.__cause__), error\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=bomb, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(
    protocol: int, tmp_path: Path
) -> None:
    cifar = Cifar(PYTHON[0])
    harmful = pickle.dumps({b"data": Harmful(tmp_path / "ran")}, protocol=protocol)
    cifar.files["data_batch_2"] = harmful
    with pytest.raises(SourceError, match=r"data_batch_2: .*it asks for posix.system"):
        listing(cifar.unpack(tmp_path / "a"), tmp_path / "index")
    assert not (tmp_path / "ran").exists()
    pickle.loads(harmful)
    assert (tmp_path / "ran").exists(), "the pickle does no harm: this test shows nothing"


BROKEN_PICKLES = {
    "cut": (lambda c: c.files["data_batch_3"][:-500], "expected a pickled dictionary"),
    "list": (lambda c: protocol_2([1, 2]), "it holds list"),
    "no labels": (lambda c: protocol_2({b"data": c.planes}), "has data, expected also labels"),
    "few labels": (
        lambda c: protocol_2({b"data": c.planes, b"labels": [1, 2]}), "2 labels, expected 7",
    ),
    "label 10": (
        lambda c: protocol_2({b"data": c.planes, b"labels": [0, 9, 10, 0, 0, 0, 0]}),
        "row 2 has label 10, expected 0 to 9",
    ),
    "label -1": (
        lambda c: protocol_2({b"data": c.planes, b"labels": [-1] * 7}), "row 0 has label -1",
    ),
    "words": (
        lambda c: protocol_2({b"data": c.planes, b"labels": [b"a"] * 7}),
        "no list of whole numbers",
    ),
    "narrow": (
        lambda c: protocol_2({b"data": c.planes[:, :3071], b"labels": [0] * 7}),
        r"shape \(7, 3071\), expected \(rows, 3072\)",
    ),
    "no array": (
        lambda c: protocol_2({b"data": b"abc", b"labels": [0] * 7}), "shape None, expected",
    ),
    "array shorter than it says": (
        lambda c: protocol_2({b"data": c.planes, b"labels": [0] * 7}).replace(
            python2(7) + python2(3072) + b"\x86", python2(8) + python2(3072) + b"\x86"
        ),
        r"an array of 21504 values, not of shape \(8, 3072\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_PICKLES)
def test_a_damaged_batch_is_named(case: str, tmp_path: Path) -> None:
    broken, message = BROKEN_PICKLES[case]
    cifar = Cifar(PYTHON[0])
    cifar.planes = np.zeros((7, 3072), np.uint8)  # type: ignore[attr-defined]
    cifar.files["data_batch_3"] = broken(cifar)
    with pytest.raises(SourceError, match=f"data_batch_3.*{message}"):
        listing(cifar.unpack(tmp_path / "a"), tmp_path / "index")


@pytest.mark.parametrize(
    ("variant", "name", "data", "message"),
    [
        (BINARY[0], "data_batch_5.bin", b"\0" * 3072, "3,072 bytes, expected a multiple of 3073"),
        (BINARY[0], "data_batch_5.bin", b"", "0 bytes, expected a multiple"),
        (BINARY[0], "test_batch.bin", b"\x0a" + b"\0" * 3072, "label 10, expected 0 to 9"),
        (BINARY[1], "train.bin", b"\x00\x64" + b"\0" * 3072, "label 100, expected 0 to 99"),
        (BINARY[0], "batches.meta.txt", b"cat\ndog\n", "2 different class names, expected 10"),
        (BINARY[0], "batches.meta.txt", b"cat\n" * 10, "1 different class names, expected 10"),
        (PYTHON[1], "meta", protocol_2({b"fine_label_names": 3}), "no list of names"),
    ],
)  # fmt: skip
def test_damaged_records_and_names_are_named(
    variant: Variant, name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    cifar = Cifar(variant)
    cifar.files[name] = data
    with pytest.raises(SourceError, match=f"{name}.*{message}"):
        listing(cifar.pack(tmp_path), tmp_path / "index")


@pytest.mark.parametrize("variant", [*PYTHON, *BINARY], ids=lambda v: v.form)
@pytest.mark.parametrize("packed", [True, False])
def test_a_missing_file_is_named(variant: Variant, packed: bool, tmp_path: Path) -> None:
    for name in (variant.train[-1], variant.test, variant.names):
        cifar = Cifar(variant)
        del cifar.files[name]
        root = (cifar.pack if packed else cifar.unpack)(tmp_path / name)
        with pytest.raises(SourceError, match=f"lacks {name} of CIFAR-{variant.classes}"):
            listing(root, tmp_path / "index")


@pytest.mark.parametrize("keep", [10, 600, 20_000])
def test_an_archive_that_is_not_whole_is_named(keep: int, tmp_path: Path) -> None:
    archive = Cifar(PYTHON[0]).pack(tmp_path)
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(SourceError, match=rf"cifar-10-python.tar.gz ends at byte {keep:,}, in the"):
        listing(archive, tmp_path / "index")


def test_a_page_that_was_saved_as_archive_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-100-binary.tar.gz"
    archive.write_text("<html>404</html>")
    with pytest.raises(SourceError, match=r"cifar-100-binary.tar.gz is cut short at byte 16"):
        listing(archive, tmp_path / "index")


# idx ------------------------------------------------------------------------------------------


def idx(array: Bytes) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


class Mnist:
    """The four files; every class in train, each image different."""

    def __init__(self) -> None:
        self.images = {"train": pictures(12, 28, 1)[..., 0], "t10k": pictures(5, 28, 2)[..., 0]}
        self.labels = {
            "train": np.array([5, 0, 4, 1, 9, 2, 1, 3, 6, 7, 8, 0], np.uint8),
            "t10k": np.array([7, 2, 1, 0, 4], np.uint8),
        }
        self.files = {}
        for name in ("train", "t10k"):
            self.files[f"{name}-images-idx3-ubyte"] = idx(self.images[name])
            self.files[f"{name}-labels-idx1-ubyte"] = idx(self.labels[name])

    def write(self, folder: Path, rename: Callable[[str], str] = str, *, zipped: bool) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / rename(name)).write_bytes(gzip.compress(data) if zipped else data)
        return folder

    def check(self, root: Path, folder: Path) -> None:
        found = listing(root, folder)
        assert found.layout == "idx"
        assert found.summary.classes == [str(digit) for digit in range(10)]
        assert all(c.shape == (28, 28, 1) for c in found.summary.containers)
        expected = {
            f"{split}/{label}/{row}": (int(label), image.tobytes())
            for split, name in (("train", "train"), ("val", "t10k"))
            for row, (label, image) in enumerate(
                zip(self.labels[name], self.images[name], strict=True)
            )
        }
        assert {key: (row.label, row.data) for key, row in found.rows.items()} == expected
        assert found.rows["train/0/11"].member.startswith("train-images")
        assert found.rows["train/0/11"].member.endswith("/11")
        assert found.rows["train/0/11"].rank == 1


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("dot", [True, False])
def test_idx_files_go_by_several_names(zipped: bool, end: str, dot: bool, tmp_path: Path) -> None:
    """What is gzip is known by content: browsers unpack without renaming."""
    rename = lambda name: (name.replace("-idx", ".idx") if dot else name) + end
    mnist = Mnist()
    mnist.check(mnist.write(tmp_path / "a", rename, zipped=zipped), tmp_path / "index")


def test_idx_files_are_found_where_torchvision_puts_them(tmp_path: Path) -> None:
    mnist = Mnist()
    mnist.write(tmp_path / "a" / "FashionMNIST" / "raw", zipped=False)
    mnist.check(tmp_path / "a", tmp_path / "i1")
    mnist.check(tmp_path / "a" / "FashionMNIST", tmp_path / "i2")
    mnist.write(tmp_path / "a" / "KMNIST" / "raw", zipped=True)
    with pytest.raises(SourceError, match=r"KMNIST/raw.*: name one of them"):
        listing(tmp_path / "a", tmp_path / "i3")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
BROKEN_IDX = {
    "magic": (
        IMAGES,
        lambda m: b"\x89PNG" + m[4:],
        "begins with 89 50 4e 47, expected 00 00 08 03",
    ),
    "swapped": (IMAGES, lambda m: idx(np.zeros(12, np.uint8)), "00 00 08 01, expected 00 00 08 03"),
    "floats": (IMAGES, lambda m: m[:2] + b"\x0d" + m[3:], "begins with 00 00 0d 03"),
    "empty": (LABELS, lambda m: b"", "begins with nothing"),
    "header": (IMAGES, lambda m: m[:9], "ends within its header"),
    "no rows": (IMAGES, lambda m: idx(np.zeros((0, 28, 28), np.uint8)), "it is empty"),
    "cut": (IMAGES, lambda m: m[:-1], "9,407 bytes after its header, expected 9,408"),
    "long": (IMAGES, lambda m: m + b"\0", "more than 9,408 bytes after its header"),
    "labels cut": (LABELS, lambda m: m[:-2], "10 bytes after its header, expected 12"),
    "few": (LABELS, lambda m: idx(np.zeros(11, np.uint8)), "11 labels, expected 12, as .*images"),
    "label": (LABELS, lambda m: m[:-1] + b"\x0a", "row 11 has label 10, expected 0 to 9"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("case", BROKEN_IDX)
def test_a_damaged_idx_file_is_named(case: str, zipped: bool, tmp_path: Path) -> None:
    name, broken, message = BROKEN_IDX[case]
    mnist = Mnist()
    mnist.files[name] = broken(mnist.files[name])
    with pytest.raises(SourceError, match=f"{name}.*{message}"):
        listing(mnist.write(tmp_path / "a", zipped=zipped), tmp_path / "index")


@pytest.mark.parametrize("damage", [lambda z: z[:-9], lambda z: z[:-8] + b"\1\2\3\4" + z[-4:]])
def test_a_damaged_gzip_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    root = Mnist().write(tmp_path / "a", lambda name: f"{name}.gz", zipped=True)
    path = root / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=f"{IMAGES}.gz is damaged or not whole"):
        listing(root, tmp_path / "index")


@pytest.mark.parametrize("name", [LABELS, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_idx_file_is_named(name: str, tmp_path: Path) -> None:
    mnist = Mnist()
    del mnist.files[name]
    with pytest.raises(SourceError, match=f"lacks {name}"):
        listing(mnist.write(tmp_path / "a", zipped=False), tmp_path / "index")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stop_while_unpickling_is_no_damage(number: signal.Signals) -> None:
    """A real signal: it ended with "expected a pickled dictionary" and status 1."""
    data = pickle.dumps({f"key{i}": list(range(200)) for i in range(2000)})
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(StoppedError, match=number.name), stopped_by_signals():
        collections.deque((load_pickle(data, "data_batch_1") for _ in itertools.count()), maxlen=0)


def test_a_file_name_stands_once_in_a_row_group() -> None:
    """Six files of one archive have one name; with a word twice in a dictionary, the bytes of the
    table differed from run to run.
    """
    found = _coded(np.array([3, 0, 1, 1, 2]), ["", "x", "", "y"])
    assert found.dictionary.to_pylist() == ["", "x", "y"]
    assert found.to_pylist() == ["y", "", "x", "x", ""]
