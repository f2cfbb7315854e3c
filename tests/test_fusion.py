"""The fused classifier on real runs: honest, the same everywhere, and of any size."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import ConfigError, SourceError
from pipeline.format import manifest, samples
from tests.conftest import RAW, ROOT, SUB4, WHOLE, Done, spectral_here, write_class_folders
from trainer import FusedClassifier
from trainer.data.groups import open_split
from trainer.data.selection import Prepared
from trainer.fusion import cache, panel
from trainer.fusion.ensemble import Options, ensemble
from trainer.fusion.evaluate import outcomes_on
from trainer.fusion.members import Member, finished_members
from trainer.fusion.panel import Panel
from trainer.process import device

FAST = ("--recipe", "digits", "--set", "epochs=2", "--set", "batch_size=16",
        "--set", "model_args.width=8")  # fmt: skip
LABEL = "digits+batch_size=16+epochs=2+model_args.width=8"
CPU = torch.device("cpu")


def quiet(*_: object) -> object:
    class Bar:
        def __enter__(self):  # type: ignore[no-untyped-def]
            return lambda count, note: None

        def __exit__(self, *_: object) -> None:
            pass

    return Bar()


def train(data: Path, runs: Path, *options: object) -> None:
    done = spectral_here("train", "--data", data, "--runs", runs, *FAST, *options)
    assert done.returncode == 0, done.stderr


def ensembled(data: Path, runs: Path, *options: object) -> dict:
    done = spectral_here("ensemble", "--data", data, "--runs", runs, "--json", *options)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two planes alone and two together in one network; and a network on whole images."""
    root = tmp_path_factory.mktemp("runs")
    for shard in ("0", "3", "1+2"):
        train(data / SUB4, root, "--shard", shard)
    train(data / WHOLE, root, "--shard", 0)
    return root


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def prepared(data: Path, folder: str = SUB4) -> Prepared:
    return Prepared(data / folder, manifest.load(data / folder))


def test_groups_of_planes_are_fused_with_single_ones(runs: Path, data: Path, source: Path) -> None:
    """And the classifier in Python, the command and the measured figures are the same."""
    result = ensembled(data / SUB4, runs)
    assert [row["shard"] for row in result["networks"]] == ["0", "1+2", "3"]
    assert result["missing"] == []
    classifier = FusedClassifier.load(runs / SUB4 / LABEL)
    images = sorted((source / "val").rglob("*.jpg"))
    found = classifier.classify(images, top=3)
    right = [guess[0].key == path.parent.name for guess, path in zip(found, images, strict=True)]
    assert np.mean(right) == result["fused"]["learned"]["val"]["top1"]
    assert sum(guess.probability for guess in found[0]) == pytest.approx(1)
    measured = outcomes_on(classifier, prepared(data), "val", quiet).fused["fused"].figures()
    assert measured == result["fused"]["learned"]["val"]
    only = ensembled(data / SUB4, runs, "--shard", "1+2,3", "--method", "average")
    assert [row["shard"] for row in only["networks"]] == ["1+2", "3"]
    assert (only["missing"], only["method"]) == ([0], "average")


def test_an_image_is_the_same_planes_whatever_it_comes_as(
    runs: Path, data: Path, source: Path
) -> None:
    """A file, a PIL image, pixels; and the planes are those that prepare has stored."""
    ensembled(data / SUB4, runs)
    classifier = FusedClassifier.load(runs / SUB4 / LABEL)
    loader = open_split(prepared(data), "val", (0, 1, 2, 3), batch_size=30, device=CPU)
    stored = torch.cat([v.clone() for v, _ in loader.batches(np.arange(30))])
    ids = samples.ids(data / SUB4, "val")
    for at in (0, 17, 29):
        path = source / str(ids[at])
        image = Image.open(path)
        for form in (path, str(path), image, np.asarray(image)):
            assert classifier.planes_of_image(form).equal(stored[at])
    logits = classifier(stored)
    assert logits.shape == (30, 3)
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(SourceError, match="is no image"):
            classifier.planes_of_image(wrong)
    with pytest.raises(SourceError, match=r"pyproject.toml: not an image"):
        classifier.classify([ROOT / "pyproject.toml"])


def test_nothing_that_is_fitted_depends_on_what_is_reported(tmp_path: Path) -> None:
    """Two data sets that differ in the labels of val and of test alone: equal weights, q,
    temperatures, order and subset; other figures.
    """
    root = write_class_folders(tmp_path / "a", {"train": 30, "val": 8, "test": 8})
    other = Path(shutil.copytree(root, tmp_path / "b"))
    for split in ("val", "test"):
        folders = [other / split / f"class_{i}" for i in range(3)]
        folders[0].rename(other / "x")
        folders[1].rename(folders[0])
        folders[2].rename(folders[1])
        (other / "x").rename(folders[2])
    found = []
    for source in (root, other):
        data, runs = (tmp_path / f"{source.name}-{what}" for what in ("data", "runs"))
        done = spectral_here("prepare", "toy", "--source", source, "--size", 32, "--splits", 4,
                             "--calib", 0.3, "--out", data)  # fmt: skip
        assert done.returncode == 0, done.stderr
        for k in (0, 1, 2):
            train(data, runs, "--shard", k)
        found.append(ensembled(data, runs))
    first, second = found
    assert first["measured_on"] == "test"
    for method, row in first["fused"].items():
        fitted = {key: value for key, value in row.items() if key not in ("val", "test")}
        assert fitted == {key: second["fused"][method][key] for key in fitted}, method
        assert row["test"] != second["fused"][method]["test"]
    order = [result["curve"]["test"]["best"]["order"] for result in found]
    assert order[0] == order[1]
    assert first["method"] == second["method"]


def test_networks_that_take_turns_answer_the_same(
    runs: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a memory that does not hold two of them, in several blocks."""
    source = prepared(data)
    members = finished_members(runs / SUB4 / LABEL, source)
    expected = list(Panel(members, source, CPU).answers("train"))
    assert len(expected) > 1
    monkeypatch.setattr(panel, "_SHARE", 1e-9)
    monkeypatch.setattr(panel, "_BLOCK", 1e-9)
    turns = Panel(members, source, CPU)
    assert turns._staying is None
    found = list(turns.answers("train"))
    assert len(found) == len(expected)
    for (logits, labels), (same, truth) in zip(found, expected, strict=True):
        assert logits.equal(same)
        assert labels.equal(truth)


def test_answers_are_kept_as_long_as_they_hold(
    runs: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again, no network is loaded; of one that was trained again they are made anew."""
    group, source = runs / SUB4 / LABEL, prepared(data)
    first = ensemble(source, group, CPU, quiet)
    asked: list[Member] = []
    load = Panel._load

    def noted(self: Panel, member: Member) -> object:
        asked.append(member)
        return load(self, member)

    monkeypatch.setattr(Panel, "_load", noted)
    again = ensemble(source, group, CPU, quiet)
    assert not asked
    assert again == first
    (group / "shard_00" / "answers" / "val.safetensors").write_bytes(b"damaged")
    assert ensemble(source, group, CPU, quiet) == first
    assert len(asked) == 3
    flipped = ensemble(source, group, CPU, quiet, Options(flip=True))
    assert len(asked) > 3
    assert flipped["networks"][0]["val"] != first["networks"][0]["val"]
    monkeypatch.setattr(cache, "MOST", 1)
    streamed = ensemble(source, group, CPU, quiet, Options(calib_samples=24))
    assert streamed["fitted_samples"] == 1  # as many as fit


def test_samples_to_fit_on_are_chosen_by_their_ids(runs: Path, data: Path) -> None:
    group, source = runs / SUB4 / LABEL, prepared(data)
    found = ensemble(source, group, CPU, quiet, Options(calib_samples=10))
    assert found["fitted_samples"] == 10
    assert found == ensemble(source, group, CPU, quiet, Options(calib_samples=10))


def test_the_published_way_is_labelled_as_leaking(runs: Path, data: Path) -> None:
    result = ensembled(data / SUB4, runs, "--published", "--q", 0.5)
    row = result["fused"]["published"]
    assert "ranked by accuracy on val" in row["leaks"]
    accuracy = [network["val"]["top1"] for network in result["networks"]]
    assert np.argmax(row["weights"]) == np.argmax(accuracy)
    assert sorted(row["weights"]) == [0.125, 0.25, 0.5]
    text = spectral_here("ensemble", "--data", data / SUB4, "--runs", runs, "--published").stdout
    assert "published leaks" in text


def test_classifiers_are_compared_on_the_same_images(runs: Path, data: Path) -> None:
    """A fused group against a single network on whole images, which was prepared apart."""
    whole = runs / WHOLE / LABEL / "shard_00"
    result = ensembled(data / SUB4, runs, "--against", whole)
    (row,) = result["against"]
    own = result["fused"]["learned"]["val"]["top1"]
    other = json.loads((whole / "result.json").read_text())["val"]["top1"]
    assert row["difference"] == pytest.approx(own - other)
    assert row["samples"] == 30
    ensembled(data / WHOLE, runs)
    group = ensembled(data / SUB4, runs, "--against", whole.parent)["against"][0]
    assert group["difference"] == pytest.approx(own - other)
    done = spectral_here("ensemble", "--data", data / SUB4, "--runs", runs, "--against", runs)
    assert done.returncode == 1
    assert "is no classifier" in done.stderr


def prepare(source: Path, out: Path, *options: object) -> Path:
    done = spectral_here("prepare", "other", "--source", source, "--size", 32, "--splits", 4,
                         "--calib", 0, "--out", out, *options)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*/*/manifest.json")
    return found.parent


def test_other_data_of_the_same_classes_is_measured(
    runs: Path, data: Path, source: Path, tmp_path: Path
) -> None:
    """All classes, in another order or fewer of them; unknown ones and other planes are refused."""
    ensembled(data / SUB4, runs)
    group, single = runs / SUB4 / LABEL, runs / SUB4 / LABEL / "shard_00"

    def evaluate(*options: object) -> Done:
        return spectral_here("evaluate", *options, "--json")

    same = json.loads(evaluate(group, "--data", data / SUB4).stdout)
    assert same["fused"]["samples"] == 30
    alone = json.loads(evaluate(single, "--data", data / SUB4).stdout)
    assert alone["fused"]["top1"] == same["networks"][0]["top1"]

    fewer = Path(shutil.copytree(source, tmp_path / "fewer"))
    for split in ("train", "val"):
        shutil.rmtree(fewer / split / "class_0")
    done = evaluate(group, "--data", prepare(fewer, tmp_path / "two"))
    found = json.loads(done.stdout)
    assert (found["classes"], found["fused"]["samples"]) == (2, 20)
    assert "has 2 of the classifier's 3 classes" in done.stderr
    assert found["fused"]["top1"] >= 0.5  # labels are those of the classes' names

    for split in ("train", "val"):
        (fewer / split / "class_1").rename(fewer / split / "lemur")
    done = evaluate(group, "--data", prepare(fewer, tmp_path / "lemurs"))
    assert done.returncode == 1
    assert "does not know: lemur" in done.stderr
    done = evaluate(group, "--data", prepare(source, tmp_path / "dct", "--transform", "dct"))
    assert done.returncode == 1
    assert "transform dct in place of dct2" in done.stderr
    done = evaluate(group, "--data", data / SUB4, "--split", "test")
    assert done.returncode == 1
    assert "has no split test" in done.stderr
    with pytest.raises(ConfigError, match="is no classifier"):
        FusedClassifier.load(data)


def test_images_are_named_in_every_way_people_expect(
    runs: Path, data: Path, source: Path, tmp_path: Path
) -> None:
    """Folders, patterns, standard input; table, CSV, JSON lines; in batches as one by one."""
    ensembled(data / SUB4, runs)
    folder = source / "val"
    (tmp_path / "pictures").mkdir()
    shutil.copytree(folder, tmp_path / "pictures" / "below")
    (tmp_path / "pictures" / "notes.txt").write_text("no image, and not named as one")
    broken = tmp_path / "pictures" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no")
    predict = ("predict", "--runs", runs, "--top", 2)
    done = spectral_here(*predict, tmp_path / "pictures", "--format", "csv", "--batch-size", 7)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 31, rows
    assert done.returncode == 1
    errors = [row for row in rows if row["error"]]
    assert [row["image"] for row in errors] == [str(broken)]
    assert errors[0]["class_1"] == ""
    done = spectral_here(*predict, f"{folder}/class_*/*.jpg", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    by_csv = [(row["class_1"], round(float(row["probability_1"]), 4)) for row in rows[:30]]
    first = [line["classes"][0] for line in lines]
    assert [(c["class"], round(c["probability"], 4)) for c in first] == by_csv
    names = "".join(f"{row['image']}\n" for row in lines[:3])
    piped = subprocess.run(
        [sys.executable, "-m", "cli", *map(str, predict), "-"], input=names, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.count("%") == 6
    for wrong, says in ((tmp_path / "empty", "holds no images"), ("*.nothing", "nothing matches")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        done = spectral_here(*predict, wrong)
        assert done.returncode == 1
        assert says in done.stderr


@pytest.mark.parametrize("folder", [RAW, WHOLE])
def test_every_codec_and_transform_predicts_as_it_was_measured(
    data: Path, source: Path, tmp_path: Path, folder: str
) -> None:
    """Of JPEG shards the loss is in the file, so classes are compared with a stored image's."""
    train(data / folder, tmp_path, "--shard", 0)
    run = tmp_path / folder / LABEL / "shard_00"
    done = spectral_here("predict", "--runs", run, "--format", "jsonl", source / "val")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    right = [row["classes"][0]["class"] == Path(row["image"]).parent.name for row in lines]
    measured = json.loads((run / "result.json").read_text())["val"]["top1"]
    assert np.mean(right) == pytest.approx(measured, abs=0.04 if folder == WHOLE else 1e-9)


def test_the_memory_of_a_graphics_card_decides_who_stays(
    runs: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel, "free_memory", lambda where: 10)
    members = finished_members(runs / SUB4 / LABEL, prepared(data))
    assert Panel(members, prepared(data), CPU)._staying is None
    assert device.free_memory(CPU) > 10
