"""Run directories and shards that are not as they should be: said, and what to do."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import DamagedError
from pipeline.format.beton import BetonReader
from tests.conftest import ROOT, SUB4, Done, spectral_here
from trainer.jobs.launch import free_port
from trainer.record import checkpoint
from trainer.record.weights import load_weights, save_weights

pytestmark = pytest.mark.processes

OPTIONS = ("--recipe", "digits", "--name", "x", "--set", "epochs=3", "--set", "batch_size=16",
           "--set", "model=fc2", "--set", "model_args.width=8", "--save-every", "1")  # fmt: skip


def train(data: Path, runs: Path, *options: object) -> Done:
    return spectral_here("train", "--data", data, "--runs", runs, "--shard", 0, *OPTIONS, *options)


def directory(data: Path, runs: Path) -> Path:
    return runs / data.parent.name / data.name / "x" / "shard_00"


@pytest.fixture
def prepared(data: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(data / SUB4, tmp_path / "toy" / "copy"))


def relabel(path: Path, label: int) -> None:
    """Write another label to sample 5, which no checksum of a frame covers."""
    with BetonReader(path) as reader:
        base = np.frombuffer(reader._map, np.uint8).__array_interface__["data"][0]
        at = reader.rows["f1"].__array_interface__["data"][0] - base + 5 * reader.rows.itemsize
    content = bytearray(path.read_bytes())
    content[at : at + 8] = label.to_bytes(8, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("split", ["train", "calib", "val"])
def test_a_changed_label_is_found_before_training(
    prepared: Path, tmp_path: Path, split: str
) -> None:
    """At the first start, of any split; one that is no class is named."""
    path = prepared / split / "shard_00.beton"
    relabel(path, 1)
    done = train(prepared, tmp_path / "runs")
    assert done.returncode == 1
    assert f"{path} is not what was prepared" in done.stderr
    relabel(path, 77)
    done = train(prepared, tmp_path / "runs")
    assert f"{path}: the label of sample 5 is 77" in done.stderr


def test_a_refused_command_leaves_the_directory_to_the_next(prepared: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"garbage")
    for wrong in (("--set", "model_args.width=0"), ("--init", weights)):
        assert train(prepared, tmp_path / "runs", *wrong).returncode == 1
    done = train(prepared, tmp_path / "runs")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_a_lost_best_network_is_said_and_the_run_can_end(
    prepared: Path, tmp_path: Path, damage: str
) -> None:
    assert train(prepared, tmp_path / "runs").returncode == 0
    run = directory(prepared, tmp_path / "runs")
    (run / "result.json").unlink()
    if damage == "missing":
        (run / "best.safetensors").unlink()
    else:
        (run / "best.safetensors").write_bytes(b"garbage")
    done = train(prepared, tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "best.safetensors is missing, damaged or of another step" in done.stderr
    best = load_weights(run / "best.safetensors").tensors
    last = torch.load(run / "last.pt", weights_only=True)["model"]
    assert best.keys() == last.keys()
    assert all(torch.equal(best[name], last[name]) for name in last)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("recipe.toml", b"\xff\xfe", "another recipe"),
        ("origin.json", b'{"shard": 1}', "origin.json is damaged: remove it"),
        ("origin.json", b'{"files": 1}', "origin.json is damaged: remove it"),
        ("result.json", b'{"shard": 1}', "result.json is damaged: remove it"),
        ("manifest.json", b"{}", "manifest.json"),
    ],
)
def test_damaged_small_files_are_stated(
    prepared: Path, tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    assert train(prepared, tmp_path / "runs").returncode == 0
    run = directory(prepared, tmp_path / "runs")
    if file != "result.json":
        (run / "result.json").unlink()
    (run / file).write_bytes(content)
    done = train(prepared, tmp_path / "runs")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("threads", 0, "0 threads"),
        ("shard", 3, "it is of shard 3, not of 0"),
        ("progress", {"step": 10**6, "evaluated": 10**6}, "step 1000000 of"),
        ("progress", {"step": "x"}, "does not fit this run"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    prepared: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    assert train(prepared, tmp_path / "runs").returncode == 0
    run = directory(prepared, tmp_path / "runs")
    (run / "result.json").unlink()
    state = torch.load(run / "last.pt", weights_only=True)
    state[key] = {**state[key], **value} if isinstance(value, dict) else value
    torch.save(state, run / "last.pt")
    done = train(prepared, tmp_path / "runs")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_last_pt_the_one_before_is_used(prepared: Path, tmp_path: Path) -> None:
    assert train(prepared, tmp_path / "runs").returncode == 0
    run = directory(prepared, tmp_path / "runs")
    before = json.loads((run / "result.json").read_text())["val"]
    (run / "result.json").unlink()
    (run / "last.pt").unlink()
    done = train(prepared, tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "last.pt is missing; going on from the one before" in done.stderr
    assert json.loads((run / "result.json").read_text())["val"] == before


def test_the_best_network_is_that_of_the_life_that_goes_on(prepared: Path, tmp_path: Path) -> None:
    """Killed between the best network and the checkpoint that speaks of it, at either side."""
    assert train(prepared, tmp_path / "runs").returncode == 0
    run = directory(prepared, tmp_path / "runs")
    written = load_weights(run / "best.safetensors")
    # no other network could be taken for it
    marked = {name: value * 2 for name, value in written.tensors.items()}
    save_weights(run / "best.new.safetensors", marked, written.facts)
    expected = load_weights(run / "best.new.safetensors")
    (run / "result.json").unlink()
    assert train(prepared, tmp_path / "runs").returncode == 0
    assert load_weights(run / "best.safetensors").digest == expected.digest
    assert not (run / "best.new.safetensors").exists()
    (run / "result.json").unlink()
    other = {name: value + 1 for name, value in expected.tensors.items()}
    save_weights(run / "best.new.safetensors", other, {"step": expected.facts["step"] + 1})
    assert train(prepared, tmp_path / "runs").returncode == 0
    assert load_weights(run / "best.safetensors").digest == expected.digest
    assert not (run / "best.new.safetensors").exists()


def test_what_clusters_set_for_every_process_is_no_group(prepared: Path, tmp_path: Path) -> None:
    command = ("train", "--data", prepared, "--runs", tmp_path, "--shard", 0, *OPTIONS)
    alone = spectral_here(*command, WORLD_SIZE="1", RANK="0")
    assert alone.returncode == 0, alone.stderr
    two = spectral_here(*command, "--name", "y", WORLD_SIZE="2", RANK="0")
    assert two.returncode == 1
    assert "WORLD_SIZE is 2, but MASTER_ADDR is not set" in two.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_process_that_waits_for_the_others_can_be_stopped(
    prepared: Path, tmp_path: Path, number: int, status: int
) -> None:
    port = str(free_port())
    group = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = ["train", "--data", prepared, "--runs", tmp_path, "--shard", "0", *OPTIONS]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "cli", *map(str, command)], cwd=ROOT, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **group},
    )  # fmt: skip
    end = time.monotonic() + 120
    while not listens(int(port)):
        assert waiting.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    time.sleep(1)  # it listens some time before it waits
    waiting.send_signal(number)
    _, error = waiting.communicate(timeout=30)
    assert waiting.returncode == status, error
    assert f"stopped by {signal.Signals(number).name}" in error


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_changed_value_of_a_network_is_found(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3)}, {"step": 4})
    found = load_weights(path)
    assert found.facts == {"step": 4}
    assert torch.equal(found.tensors["a"], torch.arange(6.0).view(2, 3).t())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="not those that were written"):
        load_weights(path)


def test_equal_networks_have_equal_files(tmp_path: Path) -> None:
    path, files = tmp_path / "w.safetensors", set()
    for _ in range(20):
        save_weights(path, {"b": torch.ones(2), "a": torch.zeros(3)}, {"step": 4})
        files.add(path.read_bytes())
    assert len(files) == 1


def test_a_disk_without_links_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in range(3):
        checkpoint.save_keeping(last, previous, {"model": {}, "step": step})
        found = checkpoint.load_newest(last, previous, torch.device("cpu"))
        assert found is not None
        assert found["step"] == step
    assert checkpoint.load(previous, torch.device("cpu"))["step"] == 1
