"""Curves of a real run, read back from where `--log-to` sent them."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, SUB4, leave_out, spectral
from tests.test_train import LABEL, train
from trainer.console import TRACKERS
from trainer.record import trackers

Curve = list[tuple[int, float]]


def logged(run: Path, kind: str, key: str) -> Curve:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row[key]) for row in rows if row["kind"] == kind]


def from_tensorboard(run: Path, root: Path) -> dict[str, Curve]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard")).Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in ("train/loss", "calib/top1")
    }


def from_mlflow(run: Path, root: Path) -> dict[str, Curve]:
    from mlflow.tracking import MlflowClient

    client, identity = MlflowClient(f"sqlite:///{root}/mlflow.db"), run / "mlflow_run_id"
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(identity.read_text(), name)]
        for name in ("train/loss", "calib/top1")
    }


def from_trackio(run: Path, root: Path) -> dict[str, Curve]:
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("spectral", "/".join(run.parts[-4:]))
    return {
        name: [(row["step"], row[name]) for row in rows if name in row]
        for name in ("train/loss", "calib/top1")
    }


READERS: dict[str, Any] = {
    "tensorboard": from_tensorboard, "mlflow": from_mlflow, "trackio": from_trackio,
}  # fmt: skip


def test_the_command_line_names_those_that_there_are() -> None:
    assert set(TRACKERS) == set(trackers._KINDS)


@pytest.mark.parametrize(
    "name",
    ["tensorboard", *(pytest.param(n, marks=pytest.mark.chaos) for n in ("mlflow", "trackio"))],
)
def test_curves_go_to_a_tracker_too(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(name) is None:
        leave_out(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)  # where MLflow keeps files
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    done = train(data / SUB4, tmp_path, "--shard", 0, "--log-to", name)
    assert done.returncode == 0, done.stderr
    run = tmp_path / SUB4 / LABEL / "shard_00"
    found = READERS[name](run, tmp_path)
    for kind, curve, key in (("train", "train/loss", "loss"), ("eval", "calib/top1", "top1")):
        expected = logged(run, kind, key)
        assert len(expected) >= 3
        assert [step for step, _ in found[curve]] == [step for step, _ in expected]
        values = [value for _, value in expected]
        assert [value for _, value in found[curve]] == pytest.approx(values, rel=1e-6)


def test_a_tracker_that_is_not_there_is_said_before_the_first_step(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError('no wandb here')")
    done = spectral("train", "--data", data / SUB4, "--runs", tmp_path, "--shard", 0,
                    "--log-to", "wandb", PYTHONPATH=f"{tmp_path}:{ROOT}")  # fmt: skip
    assert done.returncode == 1
    assert "Error: --log-to wandb: no wandb here; pip install wandb" in done.stderr
    assert not list(tmp_path.rglob("log.jsonl"))
