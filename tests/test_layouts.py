"""The same images in every layout that holds image files: `spectral prepare` writes the same."""

import gzip
import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.format import manifest
from pipeline.sources.index import SPLITS
from pipeline.stage import journal, tasks
from pipeline.stage.messages import Task
from pipeline.stage.pool import Pool
from pipeline.stage.resume import Note, State
from tests.conftest import photograph, spectral_here
from tests.listing import indexed
from tests.test_prepare import files_of
from tests.test_restart import Cut
from tests.test_sources_tar import DEVKIT, devkit, packed

WNIDS = ("n01440764", "n01443537", "n02085620")
IDS = (3, 1, 2)  # of ILSVRC: in another order than the wnids
NAMES = ("tench", "goldfish", "Chihuahua")
OPTIONS = ("--splits", 4, "--size", 32, "--calib", 0.2, "--workers", 1)
Photos = dict[str, dict[str, bytes]]  # by wnid, by name


def shots(seed: int, prefix: str, count: int) -> dict[str, bytes]:
    """Image files of both formats that people have, whatever their names say."""
    rng, found = np.random.default_rng(seed), {}
    for i in range(count):
        data = io.BytesIO()
        size = (int(rng.integers(40, 90)), int(rng.integers(40, 90)))
        photograph(rng, *size).save(data, "WEBP" if i % 5 == 4 else "JPEG", quality=90)
        found[f"{prefix}_{i:04d}.JPEG"] = data.getvalue()
    return found


@pytest.fixture(scope="module")
def train() -> Photos:
    return {wnid: shots(i, wnid, 30) for i, wnid in enumerate(WNIDS)}


@pytest.fixture(scope="module")
def val() -> Photos:
    """Names in the order of the classes, so that every layout has the same order."""
    flat = list(shots(9, "ILSVRC2012_val", 12).items())
    return {wnid: dict(flat[4 * i : 4 * i + 4]) for i, wnid in enumerate(WNIDS)}


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def tree(root: Path, split: str, photos: Photos) -> None:
    for wnid, files in photos.items():
        put(root / split / wnid, files)


def flat(photos: Photos) -> dict[str, bytes]:
    return {name: data for files in photos.values() for name, data in files.items()}


def folders(root: Path, train: Photos, val: Photos) -> Path:
    tree(root, "train", train)
    tree(root, "val", val)
    return root


def kaggle(root: Path, train: Photos, val: Photos) -> Path:
    base = root / "ILSVRC" / "Data" / "CLS-LOC"
    tree(base, "train", train)
    put(base / "val", flat(val))
    rows = [f"{Path(name).stem},{wnid} 1 2 3 4 " for wnid in WNIDS for name in val[wnid]]
    put(root, {"LOC_val_solution.csv": "\n".join(["ImageId,PredictionString", *rows]).encode()})
    return root


def ilsvrc(root: Path, train: Photos, val: Photos) -> Path:
    inner = {f"{wnid}.tar": packed(files) for wnid, files in train.items()}
    truth = [number for number, wnid in zip(IDS, WNIDS, strict=True) for _ in val[wnid]]
    synsets = [(i, wnid, name) for i, wnid, name in zip(IDS, WNIDS, NAMES, strict=True)]
    put(root, {"ILSVRC2012_img_train.tar": packed(inner), DEVKIT: devkit(synsets, truth),
               "ILSVRC2012_img_val.tar": packed(flat(val))})  # fmt: skip
    return root


def train_folders(root: Path, train: Photos, val: Photos) -> Path:
    tree(root, "all", train)
    return root / "all"


def class_tars(root: Path, train: Photos, val: Photos) -> Path:
    put(root, {f"{wnid}.tar": packed(files) for wnid, files in train.items()})
    return root


def whole_tar(root: Path, train: Photos, val: Photos) -> Path:
    inner = {f"winter21_whole/{wnid}.tar": packed(files) for wnid, files in train.items()}
    put(root, {"winter21_whole.tar.gz": gzip.compress(packed(inner), 1)})
    return root


def prepared(source: Path, out: Path, *options: object) -> Path:
    done = spectral_here("prepare", "toy", "--source", source, "--out", out, *OPTIONS, *options)
    assert done.returncode == 0, done.stderr
    (folder,) = (out / "toy").iterdir()
    return folder


def shards_of(folder: Path) -> dict[str, str]:
    return {name: found for name, found in files_of(folder).items() if name.endswith(".beton")}


Build = Callable[[Path, Photos, Photos], Path]
Made = Callable[[Build], tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, train: Photos, val: Photos) -> Made:
    """What builds a layout, to (the source, the folder that is prepared from it)."""

    @cache
    def make(build: Build) -> tuple[Path, Path]:
        root = tmp_path_factory.mktemp(build.__name__)
        source = build(root / "source", train, val)
        return source, prepared(source, root / "out")

    return make


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, train: Photos, val: Photos) -> Path:
    """From class folders: with val, and train alone."""
    root = tmp_path_factory.mktemp("folders")
    prepared(folders(root / "images", train, val), root / "with")
    prepared(root / "images" / "train", root / "without")
    prepared(root / "images", root / "no-calib", "--calib", 0)
    return root


@pytest.mark.parametrize(
    ("build", "like"),
    [(kaggle, "with"), (ilsvrc, "with"), (class_tars, "without"), (whole_tar, "without")],
)
def test_the_same_shards_from_every_layout(
    expected: Path, made: Made, build: Build, like: str
) -> None:
    """Down to calib: ids do not depend on the layout."""
    (other,) = (expected / like / "toy").iterdir()
    _, found = made(build)
    assert shards_of(found) == shards_of(other)
    assert manifest.load(found).classes == list(WNIDS)
    ids = [pq.read_table(folder / "samples.parquet")["id"] for folder in (found, other)]
    assert ids[0] == ids[1]
    if build is ilsvrc:
        assert manifest.load(found).class_names == list(NAMES)


def webdataset(root: Path, train: Photos, val: Photos) -> Path:
    for split, photos in (("train", train), ("val", val)):
        files: dict[str, bytes] = {}
        for label, wnid in enumerate(WNIDS):
            for name, data in photos[wnid].items():
                files |= {f"{Path(name).stem}.jpg": data}
                files |= {f"{Path(name).stem}.cls": str(label).encode()}
        put(root, {f"imagenet-{split}-0.tar": packed(files)})
    return root


def parquet(root: Path, train: Photos, val: Photos) -> Path:
    info = {"info": {"features": {"label": {"names": list(NAMES), "_type": "ClassLabel"}}}}
    for split, photos in (("train", train), ("validation", val)):
        rows = [(data, label) for label, wnid in enumerate(WNIDS) for data in photos[wnid].values()]
        images = pa.array([{"bytes": data, "path": "../x"} for data, _ in rows])
        table = pa.table({"image": images, "label": pa.array([label for _, label in rows])})
        table = table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()})
        (root / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet", row_group_size=7)
    return root


@pytest.mark.parametrize("build", [webdataset, parquet])
def test_the_same_images_from_layouts_with_ids_of_their_own(
    tmp_path: Path, expected: Path, train: Photos, val: Photos, build: Build
) -> None:
    """Other ids move other images to calib; without calib the shards are the same."""
    (plain,) = (expected / "no-calib" / "toy").iterdir()
    found = prepared(build(tmp_path / "source", train, val), tmp_path / "out", "--calib", 0)
    assert shards_of(found) == shards_of(plain)


@pytest.mark.parametrize("build", [whole_tar, parquet])
def test_what_the_parent_reads_ahead_is_bounded_in_bytes(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, build: Build
) -> None:
    """However large the images of a source are; where tasks end changes no byte."""
    source, whole = made(build)
    fed, feed = [], Pool._fed

    def noted(pool: Pool, task: Task, slot: int) -> Task:
        fed.append([len(data) for data in task.data or []])
        return feed(pool, task, slot)

    monkeypatch.setattr(Pool, "_fed", noted)
    monkeypatch.setattr(tasks, "slot_bytes", lambda prep, images: 20_000)
    assert files_of(prepared(source, tmp_path / "bounded")) == files_of(whole)
    assert max(map(sum, fed)) < 20_000
    assert max(map(len, fed)) > 1


@pytest.mark.parametrize("build", [whole_tar, parquet, ilsvrc])
def test_a_run_cut_off_in_the_middle_goes_on_by_offset(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, build: Build
) -> None:
    """Also where the parent reads for the workers: gzip, Parquet."""
    source, whole = made(build)
    monkeypatch.setattr(journal, "COMMIT_SECONDS", 0)
    monkeypatch.setattr(tasks, "CHUNK_IMAGES", 8)
    with monkeypatch.context() as patch:
        records = iter(range(100))
        keep = State.keep

        def cut(state: State, note: Note) -> None:
            if next(records) == 1:
                raise Cut
            keep(state, note)

        patch.setattr(State, "keep", cut)
        with pytest.raises(Cut):
            prepared(source, tmp_path / "cut")
    again = spectral_here("prepare", "toy", "--source", source, "--out", tmp_path / "cut", *OPTIONS)
    assert again.returncode == 0, again.stderr
    assert "resuming after" in again.stderr
    (cut_off,) = (tmp_path / "cut" / "toy").iterdir()
    assert files_of(cut_off) == files_of(whole)


def miniature(count: int, classes: int = 3) -> Photos:
    return {f"n{i:08d}": shots(i, f"n{i:08d}", count + i) for i in range(classes)}


@pytest.mark.parametrize("build", [class_tars, whole_tar, train_folders])
def test_the_21k_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, build: Build
) -> None:
    """Classes with more than so many images are kept, their first ones by name are val."""
    from pipeline.catalogue import DatasetSpec

    photos = miniature(20)
    photos["n00000001"] = dict(reversed(photos["n00000001"].items()))  # tars are not sorted
    source = build(tmp_path / "source", photos, {})
    spec = {**vars(_spec()), "min_images": 21, "val_per_class": 5}
    monkeypatch.setattr(
        "pipeline.sources.splits.catalogue", lambda: {"imagenet21k": DatasetSpec(**spec)}
    )
    found = indexed("imagenet21k", source, tmp_path / "index")
    assert "2 of 3 classes are kept" in caplog.text
    assert found.summary.classes == ["n00000001", "n00000002"]
    rows = [row for batch in found.batches() for row in batch.to_pylist()]
    held = sorted(Path(row["id"]).name for row in rows if SPLITS[row["split"]] == "val")
    assert held == [f"{wnid}_{i:04d}.JPEG" for wnid in found.summary.classes for i in range(5)]

    found = indexed("imagenet21k", source, tmp_path / "all", all_classes=True)
    assert len(found.summary.classes) == 3
    assert found.summary.counts["val"] == 10


def _spec() -> object:
    from pipeline.catalogue import catalogue

    return catalogue()["imagenet21k"]


def test_a_test_split_of_the_right_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source's val becomes test; val is drawn from train, so many exactly."""
    from pipeline.catalogue import DatasetSpec, catalogue

    root = tmp_path / "images"
    for i in range(10):
        put(root / "train" / str(i), shots(i, f"t{i}", 12))
        put(root / "val" / str(i), shots(i + 50, f"v{i}", 2))
    counts = {"train": 98, "val": 22, "test": 20}
    spec = {**vars(catalogue()["cifar10"]), "test_split": counts}
    for module in ("sources.splits", "stage.resume"):
        found = {"cifar10": DatasetSpec(**spec)}
        monkeypatch.setattr(f"pipeline.{module}.catalogue", lambda found=found: found)
    done = spectral_here(
        "prepare", "cifar10", "--source", root, "--splits", 4, "--test-split",
        "--workers", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usually" not in done.stderr
    (folder,) = (tmp_path / "out" / "cifar10").iterdir()
    assert folder.name == "sub4-test"
    written = manifest.load(folder).counts
    assert {split: written[split]["written"] for split in counts} == counts
    assert not written["calib"]["written"]
    refused = spectral_here("prepare", "toy", "--source", root, *OPTIONS, "--test-split")
    assert refused.returncode == 1
    assert "--test-split: only cifar10 have one" in refused.stderr


def test_a_folder_that_holds_one_archive_is_that_archive(
    tmp_path: Path, train: Photos, val: Photos
) -> None:
    """Also when it is finished, and when the archive has gone."""
    source = whole_tar(tmp_path / "source", train, val)
    prepared(source, tmp_path / "out")
    again = spectral_here("prepare", "toy", "--source", source, "--out", tmp_path / "out", *OPTIONS)
    assert "already finished" in again.stdout, again.stderr
    shutil.rmtree(source)
    again = spectral_here("prepare", "toy", "--source", source, "--out", tmp_path / "out", *OPTIONS)
    assert "already finished" in again.stdout, again.stderr


def test_the_default_source_is_the_data_set_s_own_folder(
    tmp_path: Path, train: Photos, val: Photos
) -> None:
    folders(tmp_path / "sources" / "toy", train, val)
    done = spectral_here(
        "prepare", "toy", "--out", tmp_path / "out", *OPTIONS,
        SPECTRAL_SOURCES=str(tmp_path / "sources"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
