"""All that needs a GPU, in one command of at most 20 minutes; a JSON line as each part is done.

    python benchmarks/gpu.py [PART…]        parts: step memory speed resume jobs

step    P8, ResNet-34 and -50 on sub36 planes: fed by the loader against one fixed batch.
memory  ResNet-34 at 224, 112 and 56 px: peak memory of batch 256, largest batch within 32 GB
        (the source reports 31 GB -> 10 GB, and 512 -> 2,048).
speed   Images/s at 56 px, 10,450 classes; hours for 100 epochs of ImageNet-21K-P from it.
resume  A run that is killed and goes on, with deterministic kernels: are all tensors equal?
jobs    Four small shards on one GPU, one after the other and four at once.

Shards are made of smoothed noise: speed does not depend on what is in the pictures.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import noise_shards, report
from step import Loop, measure, same

from trainer.data.selection import Prepared
from trainer.recipes.recipe import Augment, Optimizer, Recipe

DEVICE = torch.device("cuda")
TRAIN_21K, CLASSES_21K = 11_060_223, 10_450  # winter21, by the rule of 21K-P
LIMIT = 32e9  # bytes: the memory of the source's devices
RECIPE = Recipe(
    model="resnet34", epochs=1, batch_size=256,
    optimizer=Optimizer(lr=1e-3), augment=Augment(shift=4),
)  # fmt: skip


def recipe(model: str, batch: int) -> Recipe:
    """The benchmark's recipe for another network and batch size."""
    return Recipe(model=model, epochs=1, batch_size=batch, optimizer=RECIPE.optimizer,
                  augment=RECIPE.augment)  # fmt: skip


def step(folder: Path) -> dict[str, Any]:
    """P8, at batch 256."""
    data = noise_shards(folder, 36, 56, 20_000)
    return {m: measure(data, recipe(m, 256), DEVICE, 60) for m in ("resnet34", "resnet50")}


def memory(folder: Path) -> dict[str, Any]:
    """By the side of the input in px."""
    found = {}
    for side, splits in ((224, 1), (112, 4), (56, 16)):
        data = noise_shards(folder / str(side), splits, side, 4200)
        peak = _peak(data, 256)
        largest = max((b for b in (256, 512, 1024, 2048, 4096) if _peak(data, b)), default=0)
        found[f"{side}px"] = {"peak_gb_batch_256": peak and round(peak / 1e9, 2),
                              "largest_batch_in_32_gb": largest}  # fmt: skip
    return found


def _peak(data: Prepared, batch: int) -> int | None:
    """Bytes that three steps take at most; None if 32 GB do not hold them."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT / total))
    try:
        loop = Loop(data, recipe("resnet34", batch), DEVICE)
        shape = data.manifest.preparation.input_shape
        values = torch.zeros((batch, *shape), dtype=torch.int8, device=DEVICE)
        labels = torch.zeros(batch, dtype=torch.int64, device=DEVICE)
        loop.rate(same((values, labels)), 3)
        return torch.cuda.max_memory_allocated()
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def speed(folder: Path) -> dict[str, Any]:
    """Images/s of training on a resident sub36 shard, and what follows from it."""
    data = noise_shards(folder, 36, 56, 21_000, classes=CLASSES_21K)
    found = {}
    for model in ("resnet34", "resnet50"):
        for batch in (256, 1024):
            rate = measure(data, recipe(model, batch), DEVICE, 20)["resident_images_per_s"]
            hours = 100 * TRAIN_21K / rate / 3600
            found[f"{model}, batch {batch}"] = {
                "images_per_s": rate, "hours_for_100_epochs_of_21k": round(hours, 1),
            }  # fmt: skip
    return found


def _train(data: Prepared, runs: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cli", "train", "--data", str(data.directory), "--runs",
               str(runs), "--name", "run", "--recipe", "cifar-resnet20", *options]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def resume(folder: Path) -> dict[str, Any]:
    """Kill it three times; compare every tensor of last.pt with those of a run left alone."""
    data = noise_shards(folder, 4, 32, 4000)
    options = ("--shard", "0", "--deterministic", "--save-every", "20", "--set", "epochs=12")
    _train(data, folder / "calm", *options).wait()
    killed = 0
    for seconds in (25, 25, 25):
        process = _train(data, folder / "killed", *options)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    _train(data, folder / "killed", *options).wait()
    states = []
    for name in ("calm", "killed"):
        (path,) = (folder / name).rglob("last.pt")
        states.append(torch.load(path, weights_only=True)["model"])
    equal = sum(torch.equal(value, states[1][name]) for name, value in states[0].items())
    return {"kills": killed, "tensors": len(states[0]), "equal": equal}


def jobs(folder: Path) -> dict[str, Any]:
    """Wall seconds for four shards of 10,000 planes, 10 epochs each, start of processes and all."""
    data = noise_shards(folder, 4, 32, 10_000)
    found: dict[str, Any] = {}
    for count in (1, 4):
        start = time.perf_counter()
        options = ("--shard", "all", "--jobs-per-gpu", str(count), "--set", "epochs=10")
        status = _train(data, folder / f"jobs{count}", *options).wait()
        found[f"seconds_{count}_at_once"] = round(time.perf_counter() - start, 1)
        assert status == 0
    return found


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "step": step, "memory": memory, "speed": speed, "resume": resume, "jobs": jobs,
}  # fmt: skip


def main() -> None:
    """A line for each part; one that fails does not take the others along."""
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: there is no GPU here")
    for name in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = PARTS[name](Path(folder))
            except Exception as error:
                found = {"error": repr(error)}
        report(f"gpu-{name}", gpu=torch.cuda.get_device_name(), torch=torch.__version__, **found)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
