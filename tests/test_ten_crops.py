"""Runs whose figures are of ten crops of each image, on real betons."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import TenCrop

from pipeline.format import manifest
from pipeline.format.beton import BetonReader
from tests.conftest import ROOT, SUB4, TINTS, WHOLE, Done, photograph, spectral_here
from tests.test_crops import CPU, decoded
from trainer.data.normalise import Normaliser
from trainer.data.selection import Prepared
from trainer.record.rundir import RunDir
from trainer.record.weights import load_weights
from trainer.run.evaluate import Metrics, metrics
from trainer.run.network import load_network

# Margins around the crop are even once the shorter side is 32: torchvision rounds half a pixel
# to the even one, where our centre is always the upper or left one.
SIZES = ((60, 48), (48, 66), (75, 50))
FOLDER = "toy/sub1-s32-shortest-calib0.2"
OPTIONS = ("--recipe", "digits", "--name", "ten", "--shard", 0, "--set", "epochs=3",
           "--set", "batch_size=16", "--set", "model_args.width=8",
           "--set", "test_crops=10")  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three shapes, their aspect kept, and those cut to squares."""
    source, out = tmp_path_factory.mktemp("shapes"), tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(11)
    for split, count in (("train", 25), ("val", 7)):
        for label, tint in enumerate(TINTS):
            folder = source / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                image = photograph(rng, *SIZES[(label + number) % 3])
                image = Image.blend(image, Image.new("RGB", image.size, tint), 0.2)
                image.save(folder / f"{number:03d}.jpg", quality=92)
    for resize in ("shortest", "crop"):
        done = spectral_here(
            "prepare", "toy", "--source", source, "--size", 32, "--calib", 0.2, "--out", out,
            "--workers", 1, "--splits", 1, "--resize", resize,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return out


def train(data: Path, runs: Path, *options: object) -> Done:
    return spectral_here("train", "--data", data, "--runs", runs, *OPTIONS, *options)


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished one."""
    runs = tmp_path_factory.mktemp("runs")
    done = train(shapes / FOLDER, runs)
    assert done.returncode == 0, done.stderr
    return runs / FOLDER / "ten" / "shard_00"


@torch.inference_mode()
def by_torchvision(data: Prepared, run: Path, split: str) -> tuple[Metrics, Metrics]:
    """Figures of ten crops and of the centre alone, of a run's best weights, image by image."""
    network = load_network(RunDir(run), data.manifest, CPU)
    normaliser, crops = Normaliser(data.manifest, 0), TenCrop(28)
    found, path = [], data.shard_path(split, 0)
    for pixels in decoded(path):
        views = torch.stack(crops(torch.from_numpy(pixels).permute(2, 0, 1)))
        found.append(network(normaliser(views.float() - 128)).double().softmax(dim=1))
    probabilities = torch.stack(found)  # (n, 10, classes)
    with BetonReader(path) as reader:
        labels = torch.from_numpy(reader.labels.copy())
    ten, centre = probabilities.mean(dim=1), probabilities[:, 4]
    return metrics(ten.log(), labels), metrics(centre.log(), labels)


def assert_same(found: dict[str, Any], wanted: Metrics) -> None:
    assert found["samples"] == wanted.samples
    assert (found["top1"], found["top5"]) == (wanted.top1, wanted.top5)
    assert found["nll"] == pytest.approx(wanted.nll, rel=1e-5)


def test_final_figures_are_of_the_mean_probabilities_of_ten_crops(shapes: Path, run: Path) -> None:
    """As torchvision cuts them; the best epoch was chosen by the centre alone."""
    data = Prepared(shapes / FOLDER, manifest.load(shapes / FOLDER))
    result = result_of(run)
    for split in ("calib", "val"):
        ten, centre = by_torchvision(data, run, split)
        assert abs(ten.nll - centre.nll) > 1e-3
        assert_same(result[split], ten)
        if split == "calib":
            best = load_weights(run / "best.safetensors").facts["step"]
            rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            (chosen,) = (row for row in rows if row["kind"] == "eval" and row["step"] == best)
            assert_same(chosen, centre)


def test_several_processes_count_each_sample_once(shapes: Path, run: Path, tmp_path: Path) -> None:
    """21 samples of val by two: the same run, measured again."""
    again = tmp_path / FOLDER / "ten" / "shard_00"
    shutil.copytree(run, again)
    (again / "result.json").unlink()
    command = ["train", "--data", shapes / FOLDER, "--runs", tmp_path, *OPTIONS]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "cli", *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = result_of(run), result_of(again)
    assert first["val"]["samples"] == 21
    for split in ("calib", "val"):
        assert_same(second[split], Metrics(**first[split]))


def test_they_are_refused_of_images_that_did_not_keep_their_aspect(
    shapes: Path, data: Path, tmp_path: Path
) -> None:
    """Squashed, cut to squares, planes: before anything is written. A dry run says it too."""
    for folder in (data / WHOLE, shapes / "toy/sub1-s32-crop-calib0.2", data / SUB4):
        for options in ((), ("--dry-run",)):
            done = train(folder, tmp_path / "runs", *options)
            assert (done.returncode, done.stdout) == (1, "")
            assert "recipe: test_crops = 10: " in done.stderr
            assert f"{folder} did not keep the aspect of its images" in done.stderr
            assert "Traceback" not in done.stderr
    done = train(shapes / FOLDER, tmp_path / "runs", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()
