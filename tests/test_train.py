"""From shards to a fused classifier, on real betons: train, resume, damage, fuse, predict."""

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import trainer.run.fit
import trainer.run.meter
from pipeline.errors import DamagedError
from pipeline.format import manifest
from pipeline.format.beton import BetonReader
from tests.conftest import (
    RAW,
    ROOT,
    SHORTEST,
    SUB4,
    WHOLE,
    Done,
    spectral,
    spectral_here,
)
from trainer.data.loader import ShardLoader
from trainer.data.selection import Prepared
from trainer.record.weights import load_weights, save_weights
from trainer.run.evaluate import evaluate

pytestmark = pytest.mark.processes

FAST = ("--recipe", "digits", "--set", "epochs=3", "--set", "batch_size=16",
        "--set", "model_args.width=8")  # fmt: skip
LABEL = "digits+batch_size=16+epochs=3+model_args.width=8"
CPU = torch.device("cpu")


def train(data: Path, runs: Path, *options: object) -> Done:
    return spectral_here("train", "--data", data, "--runs", runs, *FAST, *options)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four shards of the toy data set, each trained in this process."""
    root = tmp_path_factory.mktemp("runs")
    for k in range(4):
        done = train(data / SUB4, root, "--shard", k)
        assert done.returncode == 0, done.stderr
    return root


def test_a_run_directory_holds_what_it_should(runs: Path, data: Path) -> None:
    run = runs / SUB4 / LABEL / "shard_02"
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    assert (recipe["epochs"], recipe["model"]) == (3, "cifar-resnet8")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    ends = [row["epoch"] for row in rows if row["kind"] == "train" and row["step"] % 5 == 0]
    assert ends == [1, 2, 3]
    assert {row["split"] for row in rows if row["kind"] == "eval"} == {"calib"}
    assert [row["split"] for row in rows if row["kind"] == "final"] == ["calib", "val"]
    state = torch.load(run / "last.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state["model"].values())
    assert state["progress"]["evaluated"] == 15
    result = json.loads((run / "result.json").read_text())
    assert result["val"]["samples"] == 30
    assert json.loads((run / "versions.json").read_text())["torch"] == torch.__version__
    assert manifest.load(run).digest == manifest.load(data / SUB4).digest
    assert not list(run.glob("*.partial"))


def test_iterations_their_evaluations_and_the_speed_of_the_last(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source 003's protocol. The time of evaluations is not that of the steps."""
    late = [0]

    def long_evaluation(*given: Any) -> Any:
        late[0] += 1000
        return evaluate(*given)

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0])
    monkeypatch.setattr(trainer.run.meter, "time", clock)
    monkeypatch.setattr(trainer.run.fit, "evaluate", long_evaluation)
    monkeypatch.setattr(trainer.run.fit, "TIMED_STEPS", 4)
    settings = ("--set", "epochs=0", "--set", "iterations=12", "--set", "eval_every=5",
                "--name", "x")  # fmt: skip
    done = train(data / SUB4, tmp_path, "--shard", 2, *settings)
    assert done.returncode == 0, done.stderr
    run = tmp_path / SUB4 / "x" / "shard_02"
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [5, 10, 12]
    steps = {row["step"]: row["images_per_s"] for row in rows if row["kind"] == "train"}
    assert list(steps) == [5, 8, 10, 12]
    result = json.loads((run / "result.json").read_text())
    assert (result["steps"], result["nan_grads"]) == (12, 0)
    expected = 60 * 4 / (2 * 16 / steps[10] + 2 * 16 / steps[12])
    assert result["train_seconds"] < 1000
    assert result["steps_per_minute"] == pytest.approx(expected, rel=0.05)


def test_a_finished_run_says_so_and_stays_as_it_is(runs: Path, data: Path) -> None:
    run = runs / SUB4 / LABEL / "shard_01"
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    done = train(data / SUB4, runs, "--shard", 1)
    assert done.returncode == 0
    assert "already finished" in done.stdout
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_other_data_or_another_recipe_under_a_run_is_refused(
    runs: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    other = train(data / SUB4, copy, "--shard", 0, "--set", "seed=3", "--name", LABEL)
    assert other.returncode == 1
    assert "another recipe" in other.stderr
    recipe = copy / SUB4 / LABEL / "shard_01" / "recipe.toml"
    before_there_were_crops = recipe.read_text().replace("test_crops = 1\n", "")
    assert before_there_were_crops != recipe.read_text()
    recipe.write_text(before_there_were_crops)
    assert "already finished" in train(data / SUB4, copy, "--shard", 1).stdout
    shutil.copy(data / RAW / "manifest.json", copy / SUB4 / LABEL / "shard_00")
    foreign = train(data / SUB4, copy, "--shard", 0)
    assert foreign.returncode == 1
    assert "other data" in foreign.stderr


def test_a_checkpoint_from_elsewhere_is_never_unpickled(
    runs: Path, data: Path, tmp_path: Path
) -> None:
    """One that would run a command, and one that is just damaged."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/owned",)

    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    run = copy / SUB4 / LABEL / "shard_00"
    (run / "result.json").unlink()
    (run / "previous.pt").unlink()
    torch.save({"model": Evil()}, run / "last.pt")
    for _ in range(2):
        done = train(data / SUB4, copy, "--shard", 0)
        assert done.returncode == 1
        assert "last.pt cannot be loaded" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "owned").exists()
        (run / "last.pt").write_bytes(b"PK\x03\x04 garbage")
    torch.save({"model": {"weight": torch.zeros(3)}}, run / "last.pt")
    done = train(data / SUB4, copy, "--shard", 0)
    assert done.returncode == 1
    assert "last.pt does not fit this run" in done.stderr


def test_a_full_disk_ends_training_with_a_clear_error(
    data: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("300k")
    done = train(data / SUB4, disk, "--shard", 0, "--set", "model_args.width=32")
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(disk.rglob("last.pt"))


@pytest.mark.parametrize("damage", ["payload", "header", "size", "pointer", "swap"])
def test_a_damaged_sample_is_an_error_that_names_it(
    data: Path, tmp_path: Path, damage: str
) -> None:
    """Within seconds, though FFCV decodes in a thread of its own; never garbage. Found at the
    start where the file was written to, else (bits rot) when the sample is read.
    """
    copy = Path(shutil.copytree(data / SUB4, tmp_path / "copy"))
    path = copy / "train" / "shard_00.beton"
    assert train(copy, tmp_path / "runs", "--shard", 0).returncode == 0
    run = tmp_path / "runs" / "toy" / "copy" / LABEL / "shard_00"
    for file in ("result.json", "last.pt", "previous.pt"):
        (run / file).unlink(missing_ok=True)
    written = path.stat()
    with BetonReader(path) as reader:
        rows_at = reader.rows["f0"].__array_interface__["data"][0]
        base = np.frombuffer(reader._map, np.uint8).__array_interface__["data"][0]
        row = rows_at - base + 37 * reader.rows.itemsize
        pointer, size = int(reader.rows["f0"]["ptr"][37]), int(reader.rows["f0"]["size"][37])
    content = bytearray(path.read_bytes())
    if damage == "payload":
        content[pointer + size // 2] ^= 16
    elif damage == "header":
        content[pointer] ^= 1
    elif damage == "size":
        content[row + 8 : row + 12] = (size - 9).to_bytes(4, "little")
    elif damage == "pointer":
        content[row : row + 8] = (2**40).to_bytes(8, "little")
    else:  # a whole frame of another size
        import zstandard

        frame = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(100))
        content[pointer : pointer + len(frame)] = frame
        content[row + 8 : row + 12] = len(frame).to_bytes(4, "little")
    path.write_bytes(content)
    done = train(copy, tmp_path / "runs", "--shard", 0)
    assert done.returncode == 1
    assert damage == "pointer" or f"{path} is not what was prepared" in done.stderr
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    loader = ShardLoader(Prepared(copy, manifest.load(copy)), "train", 0, batch_size=16, device=CPU)
    started = time.monotonic()
    with pytest.raises(DamagedError, match=rf"{path}: sample 37 cannot be read") as error:
        list(loader.batches(np.arange(loader.samples)))
    assert time.monotonic() - started < 10
    assert ("another size" in str(error.value)) == (damage == "swap")
    done = train(copy, tmp_path / "runs", "--shard", 0)
    assert done.returncode == 1
    assert f"sample 37 {'points to' if damage == 'pointer' else 'cannot be read'}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("keep", [100, 5000])
def test_a_truncated_or_missing_shard_is_refused_by_name(
    data: Path, tmp_path: Path, keep: int
) -> None:
    copy = Path(shutil.copytree(data / SUB4, tmp_path / "copy"))
    path = copy / "train" / "shard_00.beton"
    path.write_bytes(path.read_bytes()[:keep])
    done = train(copy, tmp_path / "runs", "--shard", 0)
    assert done.returncode == 1
    assert str(path) in done.stderr
    path.unlink()
    done = train(copy, tmp_path / "runs", "--shard", 0)
    assert done.returncode == 1
    assert "is missing" in done.stderr


@pytest.mark.parametrize(
    ("every", "message"),
    [
        (0, "answers on calib are not finite after step 47"),
        (100, "not finite in 50 steps in a row"),
    ],
)
def test_a_network_that_is_no_number_any_more_never_counts_as_trained(
    data: Path, tmp_path: Path, every: int, message: str
) -> None:
    settings = ("optimizer.lr=1e30", "batch_size=2", f"eval_every={every}")
    changes = [word for setting in settings for word in ("--set", setting)]
    done = train(data / SUB4, tmp_path, "--shard", 0, *changes, "--name", "x")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / SUB4 / "x" / "shard_00" / "result.json").exists()
    listed = spectral_here("status", "--runs", tmp_path, "--json")
    assert json.loads(listed.stdout)[0]["state"] == "failed"


def test_the_data_set_is_chosen_or_the_choices_are_listed(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / SUB4, tmp_path / SUB4)
    env = {"SPECTRAL_DATA": str(tmp_path), "SPECTRAL_RUNS": str(tmp_path / "runs")}
    alone = spectral_here("train", "--shard", 1, *FAST, **env)
    assert alone.returncode == 0, alone.stderr
    assert (tmp_path / "runs" / SUB4 / LABEL / "shard_01" / "result.json").exists()
    env["SPECTRAL_DATA"] = str(data)
    many = spectral_here("train", "--shard", 1, *FAST, **env)
    assert many.returncode == 1
    for folder in (SUB4, RAW, WHOLE):
        assert folder in many.stderr
    none = spectral_here("train", "--shard", 1, "--dataset", "cifar10", **env)
    assert none.returncode == 1
    assert "fits --dataset cifar10" in none.stderr
    nowhere = spectral_here("train", "--shard", 1, "--data", tmp_path / "runs")
    assert "no prepared data set" in nowhere.stderr
    outside = spectral_here("train", "--shard", 4, "--data", data / SUB4)
    assert "shards 0 to 3" in outside.stderr


@pytest.mark.parametrize("folder", [RAW, WHOLE, SHORTEST])
def test_every_kind_of_shard_trains(data: Path, tmp_path: Path, folder: str) -> None:
    done = train(data / folder, tmp_path, "--shard", 0)
    assert done.returncode == 0, done.stderr
    assert "val" in done.stdout


def test_the_ensemble_is_measured_and_predicts(runs: Path, data: Path, source: Path) -> None:
    """Fused accuracy on val, in a table and as JSON; then image files to classes."""
    done = spectral_here("ensemble", "--data", data / SUB4, "--runs", runs, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["shard"] for row in result["networks"]] == ["0", "1", "2", "3"]
    assert set(result["fused"]) == {"learned", "average", "geometric", "single-best", "subset"}
    for found in result["fused"].values():
        assert found["val"]["samples"] == 30
        assert len(found["weights"]) == 4
    assert result["fused"]["learned"]["val"]["top1"] > 0.8
    text = spectral_here("ensemble", "--data", data / SUB4, "--runs", runs)
    assert "learned" in text.stdout

    images = sorted((source / "val").rglob("*.jpg"))
    done = spectral_here("predict", "--runs", runs, "--format", "jsonl", "--top", 2, *images)
    assert done.returncode == 0, done.stderr
    predictions = [json.loads(line) for line in done.stdout.splitlines()]
    right = [p["classes"][0]["class"] == Path(p["image"]).parent.name for p in predictions]
    assert np.mean(right) == pytest.approx(result["fused"]["learned"]["val"]["top1"])
    assert all(0 < row["probability"] <= 1 for p in predictions for row in p["classes"])
    three = (images[0], ROOT / "pyproject.toml", images[-1])
    bad = spectral_here("predict", "--runs", runs, *three)
    assert bad.returncode == 1
    assert "1 of 3 images were not classified" in bad.stderr
    assert "pyproject.toml: not an image" in bad.stderr
    assert bad.stdout.count("class_") >= 2 + bad.stdout.count("/class_")  # the others are
    found = spectral_here("predict", "--runs", runs, "--format", "jsonl", *three).stdout
    assert ["classes" in json.loads(row) for row in found.splitlines()] == [True, False, True]
    gone = spectral_here("predict", "--runs", runs, "nowhere.jpg")
    assert gone.returncode == 1
    assert "nowhere.jpg" in gone.stderr


def test_weights_are_not_used_for_a_network_trained_since(
    runs: Path, data: Path, source: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(runs, tmp_path / "runs"))
    assert spectral_here("ensemble", "--data", data / SUB4, "--runs", copy).returncode == 0
    image = source / "val" / "class_0" / "000.jpg"
    assert spectral_here("predict", "--runs", copy, image).returncode == 0
    path = copy / SUB4 / LABEL / "shard_00" / "best.safetensors"
    found = load_weights(path)
    save_weights(path, {n: v * 1 + (v.ndim > 1) for n, v in found.tensors.items()}, found.facts)
    done = spectral_here("predict", "--runs", copy, image)
    assert done.returncode == 1
    assert "shard_00 was trained again after its weight" in done.stderr
    assert spectral_here("ensemble", "--data", data / SUB4, "--runs", copy).returncode == 0
    assert spectral_here("predict", "--runs", copy, image).returncode == 0


def test_networks_that_know_nothing_are_averaged(
    runs: Path, data: Path, source: Path, tmp_path: Path
) -> None:
    """Whose answers are against the truth: no weight that is not negative helps."""
    copy = Path(shutil.copytree(runs, tmp_path / "runs"))
    for path in copy.rglob("best.safetensors"):
        found = load_weights(path)
        (head,) = (name for name, value in found.tensors.items() if value.ndim == 2)
        last = (head, head.replace("weight", "bias"))
        turned = {n: -v if n in last else v for n, v in found.tensors.items()}
        save_weights(path, turned, found.facts)
    done = spectral_here("ensemble", "--data", data / SUB4, "--runs", copy, "--json")
    assert done.returncode == 0, done.stderr
    assert "learned weights are all 0" in done.stderr
    result = json.loads(done.stdout)
    assert "learned" not in result["fused"]
    assert result["method"] == "average"
    done = spectral_here("predict", "--runs", copy, source / "val" / "class_0" / "000.jpg")
    assert done.returncode == 0, done.stderr


def test_missing_and_foreign_shards_are_said(runs: Path, data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs, tmp_path / "runs"))
    group = copy / SUB4 / LABEL
    shutil.rmtree(group / "shard_03")
    (group / "shard_01" / "result.json").unlink()
    done = spectral_here("ensemble", "--data", data / SUB4, "--runs", copy, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["missing"] == [1, 3]
    assert "no network sees planes 1, 3" in done.stderr
    assert "shard 1 has not finished" in done.stderr
    shutil.copy(data / RAW / "manifest.json", group / "shard_00")
    done = spectral_here("ensemble", "--data", data / SUB4, "--runs", copy)
    assert done.returncode == 1
    assert "shard_00 was trained on other data" in done.stderr
    none = spectral_here("ensemble", "--data", data / RAW, "--runs", copy)
    assert none.returncode == 1
    assert "run `spectral train` first" in none.stderr


def test_few_channels_at_larger_sizes_train_on_the_cpu(source: Path, tmp_path: Path) -> None:
    """torch's channels-last convolutions corrupt memory there, so they are not used."""
    done = spectral("prepare", "toy", "--source", source, "--size", 128, "--splits", 4,
                    "--out", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = train(tmp_path, tmp_path / "runs", "--shard", 0, "--set", "model_args.width=4",
                 "--set", "epochs=1")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_second_training_of_a_shard_is_refused(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", "train", "--data", data / SUB4, "--runs", tmp_path,
               "--shard", "0", *FAST, "--name", "x", "--set", "epochs=500"]  # fmt: skip
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not (tmp_path / SUB4 / "x" / "shard_00" / "log.jsonl").exists():
        assert first.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    second = train(data / SUB4, tmp_path, "--shard", 0, "--name", "x", "--set", "epochs=500")
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert "another process trains" in second.stderr
    outside = train(data / SUB4, tmp_path, "--shard", 0, "--name", "../x")
    assert outside.returncode == 1
    assert "--name ../x" in outside.stderr


def test_a_finished_run_without_its_network_says_what_to_do(
    runs: Path, data: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(runs, tmp_path / "runs"))
    (copy / SUB4 / LABEL / "shard_01" / "best.safetensors").unlink()
    done = train(data / SUB4, copy, "--shard", 1)
    assert done.returncode == 1
    assert "best.safetensors of a finished run is missing or damaged: remove" in done.stderr


def test_damage_in_val_is_found_before_training(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / SUB4, tmp_path / "copy"))
    path = copy / "val" / "shard_00.beton"
    path.write_bytes(path.read_bytes()[:-1])
    done = train(copy, tmp_path / "runs", "--shard", 0)
    assert done.returncode == 1
    assert f"{path} is truncated" in done.stderr
    assert not (tmp_path / "runs").exists()
