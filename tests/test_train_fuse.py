"""From a source to a fused classifier, on splits of every kind; and the demo."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Done, spectral, spectral_here, write_class_folders
from tests.test_train import train
from trainer import demo
from trainer.jobs.shards import make_specs

pytestmark = pytest.mark.processes


def test_what_chose_the_epochs_is_not_what_the_fusion_is_measured_on(tmp_path: Path) -> None:
    """Without calib but with a test split, val chooses; figures are of test."""
    root = write_class_folders(tmp_path / "source", {"train": 20, "val": 6, "test": 4})
    done = spectral_here("prepare", "toy", "--source", root, "--size", 32, "--splits", 4,
                         "--calib", 0, "--out", tmp_path / "data")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for k in range(2):
        assert train(tmp_path / "data", tmp_path / "runs", "--shard", k).returncode == 0
    command = ("ensemble", "--data", tmp_path / "data", "--runs", tmp_path / "runs")
    found = json.loads(spectral_here(*command, "--json").stdout)
    assert (found["fitted_on"], found["measured_on"]) == ("val", "test")
    assert found["fused"]["learned"]["test"]["samples"] == 12
    assert "val" not in found["fused"]["learned"]
    assert "on test (12 images)" in spectral_here(*command).stdout


def test_without_val_networks_are_fused_but_not_measured(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "source", {"train": 20})
    done = spectral("prepare", "toy", "--source", root, "--size", 32, "--splits", 4,
                    "--calib", 0.3, "--out", tmp_path / "data")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for k in range(2):
        assert train(tmp_path / "data", tmp_path / "runs", "--shard", k).returncode == 0
    done = spectral_here("ensemble", "--data", tmp_path / "data", "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "not measured" in done.stdout
    image = root / "train" / "class_0" / "000.jpg"
    done = spectral_here("predict", "--runs", tmp_path / "runs", image)
    assert done.returncode == 0, done.stderr
    assert "class_0" in done.stdout
    wrong = spectral_here("predict", "--runs", tmp_path / "runs", "--dataset", "other", image)
    assert wrong.returncode == 1
    assert "choose one of" in wrong.stderr


def shown(done: Done, tmp_path: Path) -> dict[str, Any]:
    """What the demo wrote."""
    assert done.returncode == 0, done.stderr
    table: dict[str, Any] = json.loads((tmp_path / "demo.json").read_text())
    assert len(table["shards"]) == 4
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 10_000
    assert "spectral prepare mine" in done.stdout
    assert "smoke test" in done.stdout
    return table


def test_the_demo_runs_the_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's first command, trained for an epoch; five networks, a table, a picture."""
    monkeypatch.setattr(
        demo, "make_specs", lambda data, shards, recipe, settings, runs: make_specs(
            data, shards, recipe, (*settings, "epochs=1"), runs
        )
    )  # fmt: skip
    done = spectral_here("demo", "--out", tmp_path / "demo", "--json", tmp_path / "demo.json")
    assert shown(done, tmp_path)["seconds"] > 0


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_the_demo_as_it_is(tmp_path: Path) -> None:
    """In a process of its own, and to the end: what it reaches."""
    done = spectral("demo", "--out", tmp_path / "demo", "--json", tmp_path / "demo.json")
    table = shown(done, tmp_path)
    assert table["fused_top1"] >= 0.97
    assert table["baseline_top1"] > 0.9
