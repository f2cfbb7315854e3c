"""Runs that are killed, stopped, damaged, or go on in another number of processes."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, SUB4
from trainer.record.weights import load_weights

pytestmark = pytest.mark.processes

STEPS = 200  # 40 epochs of 5
OPTIONS = ("--recipe", "digits", "--name", "run", "--save-every", "7", "--set", "epochs=40",
           "--set", "batch_size=16", "--set", "model_args.width=8", "--set", "ema=0.9",
           "--set", "augment.mixup=0.2", "--set", "augment.cutout=4")  # fmt: skip


def command(data: Path, runs: Path, *options: object) -> list[str]:
    return [sys.executable, "-m", "cli", "train", "--data", str(data / SUB4), "--runs", str(runs),
            "--shard", "0", *OPTIONS, *map(str, options)]  # fmt: skip


def run_directory(runs: Path) -> Path:
    return runs / SUB4 / "run" / "shard_00"


def log_rows(runs: Path) -> list[dict[str, Any]]:
    path = run_directory(runs) / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def finish(data: Path, runs: Path, *options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(data, runs, *options), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def interrupt(
    data: Path, runs: Path, after: int, number: signal.Signals, *options: object
) -> tuple[int, str]:
    """Start, send a signal once `after` steps are logged and a random moment has passed."""
    process = subprocess.Popen(
        command(data, runs, *options), cwd=ROOT, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not any(row["step"] >= after for row in log_rows(runs) if row["kind"] == "train"):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.005)
    time.sleep(random.random() * 0.1)
    assert process.poll() is None, "it had ended before the signal"
    process.send_signal(number)
    error = process.communicate(timeout=30)[1]
    return process.returncode, error


def tensors(value: object, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by their path in it."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else ()
    return {k: v for key, part in pairs for k, v in tensors(part, f"{name}/{key}").items()}


def assert_same_end(runs: Path, undisturbed: Path) -> int:
    """Bit for bit: weights, averaged weights, momenta; and all figures. How many tensors."""
    compared = 0
    for read in (
        lambda run: torch.load(run / "last.pt", weights_only=True),
        lambda run: load_weights(run / "best.safetensors").tensors,
    ):
        found, expected = (tensors(read(run_directory(r))) for r in (runs, undisturbed))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        compared += len(expected)
    results = [
        json.loads((run_directory(r) / "result.json").read_text()) for r in (runs, undisturbed)
    ]
    for result in results:
        del result["train_seconds"], result["steps_per_minute"]
    assert results[0] == results[1]
    return compared


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    finish(data, runs)
    return runs


def kill_repeatedly(data: Path, runs: Path, kills: int, *options: object) -> None:
    """Spread over the whole run, at random moments, each found alive."""
    for kill in range(kills):
        target = STEPS * kill // (kills + 1) + random.randrange(STEPS // (kills + 2))
        status, _ = interrupt(data, runs, max(target, 1), signal.SIGKILL, *options)
        assert status == -signal.SIGKILL
    finish(data, runs, *options)


def test_a_killed_run_ends_like_an_undisturbed_one(
    data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """Once, streamed, and then resident to its end."""
    status, _ = interrupt(data, tmp_path, 70, signal.SIGKILL, "--feed", "stream")
    assert status == -signal.SIGKILL
    finish(data, tmp_path, "--feed", "resident")
    assert assert_same_end(tmp_path, undisturbed) > 50


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("feed", ["stream", "resident"])
def test_many_kills_change_nothing(
    data: Path, tmp_path: Path, undisturbed: Path, feed: str
) -> None:
    kill_repeatedly(data, tmp_path, 15, "--feed", feed)
    assert assert_same_end(tmp_path, undisturbed) > 50


def test_signals_save_and_a_damaged_checkpoint_falls_back(
    data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """SIGUSR2 and SIGUSR1 end it with status 75 after a checkpoint of that very step; then
    last.pt loses a bit, and the one before it is used: the end is the same again.
    """
    for number, after in ((signal.SIGUSR2, 50), (signal.SIGUSR1, 100)):
        status, error = interrupt(data, tmp_path, after, number)
        assert status == 75, error
        assert f"stopped by {number.name} after step" in error
        assert "Traceback" not in error
        last = torch.load(run_directory(tmp_path) / "last.pt", weights_only=True)
        assert last["progress"]["step"] == log_rows(tmp_path)[-1]["step"] >= after
    path = run_directory(tmp_path) / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    done = finish(data, tmp_path)
    assert "last.pt cannot be loaded" in done.stderr
    assert "going on from the one before" in done.stderr
    before = torch.load(run_directory(tmp_path) / "previous.pt", weights_only=True)
    assert before["progress"]["step"] > 100
    assert_same_end(tmp_path, undisturbed)


def torchrun(processes: int, data: Path, runs: Path, *options: object) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", str(processes), "-m", "cli"]  # fmt: skip
    done = subprocess.run(
        [*launcher, *command(data, runs, *options)[3:]], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


WITHOUT_BN = ("--set", "model=fc4", "--set", "model_args.width=32", "--set", "epochs=40",
              "--set", "batch_size=22", "--set", "optimizer.name=sgd", "--set",
              "optimizer.lr=0.02", "--set", "ema=0", "--save-every", 1)  # fmt: skip


def curve(runs: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in log_rows(runs) if row["kind"] == "train"}


def test_several_processes_train_as_one_would(data: Path, tmp_path: Path) -> None:
    """Shares are uneven (22 by 3); losses, accuracies and weights agree within rounding, of a run
    that is begun by one process, and goes on in three.
    """
    finish(data, tmp_path / "1", *WITHOUT_BN)
    status, error = interrupt(data, tmp_path / "3", 50, signal.SIGTERM, *WITHOUT_BN)
    assert status == 75, error
    torchrun(3, data, tmp_path / "3", *WITHOUT_BN)
    expected = curve(tmp_path / "1")
    best = load_weights(run_directory(tmp_path / "1") / "best.safetensors").tensors
    result = json.loads((run_directory(tmp_path / "1") / "result.json").read_text())
    runs = tmp_path / "3"
    found = curve(runs)
    assert found.keys() == expected.keys()
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, abs=1e-4), step
    other = load_weights(run_directory(runs) / "best.safetensors").tensors
    for name, value in best.items():
        assert torch.allclose(value, other[name], atol=1e-4), name
    again = json.loads((run_directory(runs) / "result.json").read_text())
    assert again["val"]["samples"] == 30
    assert again["val"]["top1"] == pytest.approx(result["val"]["top1"], abs=0.034)
    assert again["val"]["nll"] == pytest.approx(result["val"]["nll"], abs=1e-3)
