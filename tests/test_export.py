"""The exported classifier: the same answers, whole or absent, and read back only undamaged."""

import json
import os
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

from pipeline.errors import ConfigError, DamagedError
from pipeline.format import manifest
from pipeline.planes import imaging
from pipeline.planes.imaging import load
from pipeline.preparation import preparation
from tests.conftest import ROOT, SUB4, Done, photograph, spectral_here
from tests.test_fusion import CPU, LABEL, ensembled, prepared, quiet, train
from trainer import FusedClassifier
from trainer.data.groups import open_split
from trainer.export.preprocess import preprocessing
from trainer.fusion.evaluate import outcomes_on

FILES = {"config.json", "manifest.json", "model.safetensors"}


@pytest.fixture(scope="module")
def group(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks on two planes alone and on two together, fused with mirror images; for all tests
    of this file, which leave it as it is.
    """
    root = tmp_path_factory.mktemp("runs")
    for shard in ("0", "3", "1+2"):
        train(data / SUB4, root, "--shard", shard)
    ensembled(data / SUB4, root, "--method", "average", "--flip")
    return root / SUB4 / LABEL


def export(path: Path, *options: object) -> Done:
    return spectral_here("export", path, *options)


def exported(path: Path, to: Path, *options: object) -> Path:
    done = export(path, "--to", to, *options)
    assert done.returncode == 0, done.stderr
    return to


def stored_planes(data: Path, planes: tuple[int, ...] = (0, 1, 2, 3)) -> torch.Tensor:
    loader = open_split(prepared(data), "val", planes, batch_size=30, device=CPU)
    return torch.cat([values.clone() for values, _ in loader.batches(np.arange(30))])


def test_weights_come_back_bit_for_bit(
    group: Path, data: Path, source: Path, tmp_path: Path
) -> None:
    """Of a group and of a run; and predict and evaluate take the folder as they take the runs."""
    for path, method in ((group, None), (group, "learned"), (group / "shard_00", None)):
        to = tmp_path / f"{path.name}-{method}"
        options = ("--method", method) if method else ()
        exported(path, to, *options)
        assert {file.name for file in to.iterdir()} == FILES
        own, back = FusedClassifier.load(path, method=method), FusedClassifier.load(to)
        assert (own.planes, own.pooling) == (back.planes, back.pooling)
        assert back(stored_planes(data)).equal(own(stored_planes(data)))
    to = tmp_path / f"{group.name}-None"
    photos = source / "val"
    found = [spectral_here("predict", "--runs", path, photos).stdout for path in (group, to)]
    assert found[0] == found[1] != ""
    measured = [
        spectral_here("evaluate", path, "--data", data / SUB4, "--json").stdout
        for path in (group, to)
    ]
    assert measured[0] == measured[1] != ""
    with pytest.raises(ConfigError, match="holds method average alone"):
        FusedClassifier.load(to, method="subset")
    done = export(to, "--to", tmp_path / "again")
    assert done.returncode == 1
    assert "is exported already" in done.stderr


def test_an_export_is_of_no_machine(group: Path, tmp_path: Path) -> None:
    """No path of the source of the data, none of the runs; tensors by the names that torch gives
    them; readable by whom the user's umask lets.
    """
    to = exported(group, tmp_path / "out")
    text = b"".join(file.read_bytes() for file in to.iterdir())
    assert str(ROOT).encode() not in text
    assert str(group.parent.parent).encode() not in text
    source = manifest.load(group / "shard_00").source
    assert source.startswith("/")
    assert source.encode() not in text
    with safe_open(to / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {name.partition(".")[0] for name in names} == {"shard_00", "shard_03", "shard_01+02"}
    (tmp_path / "new").mkdir()
    assert to.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_weights_fitted_with_mirror_images_are_used_with_them(group: Path, data: Path) -> None:
    """What predicts is what was measured; without them it would not be."""
    result = json.loads((group / "ensemble.json").read_text())
    assert result["flip"]
    classifier = FusedClassifier.load(group)
    measured = outcomes_on(classifier, prepared(data), "val", quiet).fused["fused"].figures()
    assert measured == result["fused"]["average"]["val"]
    classifier.predictors[0].views = None
    other = outcomes_on(classifier, prepared(data), "val", quiet).fused["fused"].figures()
    assert measured["nll"] != other["nll"]


def flip_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def changed(path: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1) + "\n")


def test_damage_is_refused(group: Path, tmp_path: Path) -> None:
    """A bit of a value, of a header; a changed weight; another manifest; a file cut short."""
    good = exported(group, tmp_path / "good")
    size = (good / "model.safetensors").stat().st_size
    damages: list[tuple[str, Callable[[Path], None]]] = [
        ("are others", lambda d: flip_bit(d / "model.safetensors", size - 1)),
        ("are others", lambda d: flip_bit(d / "model.safetensors", size // 2)),
        ("damaged", lambda d: flip_bit(d / "model.safetensors", 0)),
        ("damaged", lambda d: flip_bit(d / "model.safetensors", 9)),
        ("damaged", lambda d: os.truncate(d / "model.safetensors", size - 8)),
        (
            "digest does not match",
            lambda d: changed(d / "config.json", lambda c: c["pooling"].update(temperature=2.0)),
        ),
        ("not the JSON", lambda d: os.truncate(d / "config.json", 100)),
        ("damaged", lambda d: flip_bit(d / "manifest.json", 300)),
        (
            "manifest.json is another one",
            lambda d: replace(manifest.load(d), psnr_images=3).save(d),
        ),
    ]
    for number, (says, damage) in enumerate(damages):
        copy = Path(shutil.copytree(good, tmp_path / str(number)))
        damage(copy)
        with pytest.raises(DamagedError, match=says):
            FusedClassifier.load(copy)
    other = Path(shutil.copytree(good, tmp_path / "other"))
    changed(other / "config.json", lambda content: content.update(format="bert"))
    with pytest.raises(ConfigError, match="not of `spectral export`"):
        FusedClassifier.load(other)


def test_what_is_damaged_is_not_exported(group: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(group, tmp_path / group.name))
    best = runs / "shard_03" / "best.safetensors"
    flip_bit(best, best.stat().st_size - 1)
    done = export(runs, "--to", tmp_path / "out")
    assert done.returncode == 1
    assert "best.safetensors is damaged" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {group.name}


def test_a_folder_is_whole_or_absent(
    group: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    """On a full disk too; what a killed export left is replaced; nothing is overwritten."""
    disk = small_disk("100k")
    done = export(group, "--to", disk / "out")
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert not [*disk.iterdir()]
    left = tmp_path / "out.partial"
    left.mkdir()
    (left / "half").write_text("of a killed export")
    to = exported(group, tmp_path / "out")
    assert {file.name for file in to.iterdir()} == FILES
    assert not left.exists()
    before = (to / "config.json").stat()
    for options in (("--to", to), ("--hub-folder", to), ("--to", to, "--format", "onnx")):
        done = export(group, *options)
        assert done.returncode == 1
        assert "is there already" in done.stderr
    assert (to / "config.json").stat() == before
    for wrong in ((), ("--to", tmp_path / "a", "--hub-folder", tmp_path / "b"),
                  ("--hub-folder", tmp_path / "c", "--format", "pt2")):  # fmt: skip
        assert export(group, *wrong).returncode == 2


def test_a_folder_for_the_hub_is_complete(group: Path, data: Path, tmp_path: Path) -> None:
    """Made without a network; the card says licence, data, figures with intervals; it loads."""
    to = tmp_path / "hub"
    done = export(group, "--hub-folder", to, "--license", "cc-by-nc-4.0")
    assert done.returncode == 0, done.stderr
    assert {file.name for file in to.iterdir()} == {*FILES, "README.md"}
    card = ModelCard.load(to / "README.md")
    facts = card.data.to_dict()
    assert (facts["license"], facts["datasets"]) == ("cc-by-nc-4.0", "toy")
    row = json.loads((group / "ensemble.json").read_text())["fused"]["average"]["val"]
    assert card.data.eval_results is not None
    top1 = card.data.eval_results[0]
    assert (top1.metric_value, top1.dataset_split) == (row["top1"], "val")
    assert top1.metric_args == {"interval_95": row["top1_interval"]}
    low, high = row["top1_interval"]
    assert f"| Top-1 | {row['top1']:.2%} | {low:.2%} to {high:.2%} |" in card.text
    assert "FusedClassifier.load" in card.text
    own, back = FusedClassifier.load(group), FusedClassifier.load(to)
    assert back(stored_planes(data)).equal(own(stored_planes(data)))
    alone = tmp_path / "alone"
    assert export(group / "shard_00", "--hub-folder", alone).returncode == 0
    assert "to" in (alone / "README.md").read_text()


@pytest.mark.parametrize(
    ("splits", "channels", "resize"),
    [(4, 3, "squash"), (4, 1, "crop"), (1, 3, "crop"), (1, 3, "shortest"), (1, 1, "shortest")],
)
def test_the_preprocessing_as_it_stands_gives_the_same_pixels(
    tmp_path: Path, splits: int, channels: int, resize: str
) -> None:
    """Of JPEG, large ones too, PNG with a palette and with transparency, GIF."""
    prep = preparation("x", splits, size=32, channels=channels, resize=resize)
    (tmp_path / "preprocess.py").write_text(preprocessing(prep))
    own = runpy.run_path(str(tmp_path / "preprocess.py"))["load"]
    rng = np.random.default_rng(5)
    names = ("a.jpg", "grey.jpg", "large.jpg", "p.png", "rgba.png", "a.gif")
    for number, name in enumerate(names):
        wide = 500 if name == "large.jpg" else 60 + 7 * number
        image: Image.Image = photograph(rng, wide, 45 * wide // 60)
        modes = {"grey.jpg": "L", "p.png": "P", "a.gif": "P", "rgba.png": "RGBA"}
        image = image.convert(modes.get(name, "RGB"))
        image.save(tmp_path / name)
        expected = imaging.pixels(load((tmp_path / name).read_bytes(), prep)[0])
        found = own(tmp_path / name)[0]
        cut = (expected.shape[0] - found.shape[0]) // 2, (expected.shape[1] - found.shape[1]) // 2
        expected = expected[cut[0] :, cut[1] :][: found.shape[0], : found.shape[1]]
        assert np.array_equal(found, expected), name
