"""All that needs a GPU, in one command of at most 9 minutes; a JSON line as each part is done.

    python benchmarks/gpu.py [PART…] [--budget SECONDS] [--out FILE] [--smoke]

machine  What the card reaches: a large copy, a large matrix product in bfloat16.
digests  Is what reaches the network what lies on disk? Checksums of each sample of a resident shard
         and of streamed batches, while the GPU lags behind the loader, against the CPU's.
step     P8: images/s of whole epochs, streamed and resident, against the same steps on one fixed
         batch and against a bare PyTorch loop (same network, batch and precision; a shard in the
         device's memory, normalised, fused SGD, nothing else).
syncs    Kernels, copies and waits for the device in one step, counted by torch's profiler.
compiled `--compile` against the same without, of small networks.
speed    Images/s at 56 px, 10,450 classes; hours for 100 epochs of ImageNet-21K-P from it.
memory   ResNet-34 at 224, 112 and 56 px: peak memory of batch 256, largest batch within 32 GB
         (the source reports 31 GB -> 10 GB, and 512 -> 2,048).
resume   A run that is killed at three steps and goes on, with deterministic kernels: are all
         tensors those of a run left alone?
jobs     Four small shards on one GPU, one after the other and four at once.

Shards are made of smoothed noise: speed does not depend on what is in the pictures. A part is not
begun when the budget is spent. --smoke: tiny sizes, on a CPU too, to see that all of it runs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare import Bare
from common import noise_shards
from step import K, Loop, same
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from trainer.data.feed import feed
from trainer.data.loader import ShardLoader
from trainer.data.selection import Prepared
from trainer.process.device import pick_device
from trainer.recipes.recipe import Augment, Optimizer, Recipe

TRAIN_21K, CLASSES_21K = 11_060_223, 10_450  # winter21, by the rule of 21K-P
LIMIT = 32e9  # bytes: the memory of the source's devices
SECONDS = 1.5  # that a rate is measured for, at least, in whole epochs
KILLED_AT = (0.15, 0.45, 0.8)  # of all steps


class Bench:
    """Sizes, the device, and shards that several parts use."""

    def __init__(self, folder: Path, smoke: bool) -> None:
        self.folder, self.smoke, self.device = folder, smoke, pick_device()
        self.cuda = self.device.type == "cuda"

    def shards(
        self, splits: int, side: int, samples: int, classes: int = 10, calib: float = 0.0
    ) -> Prepared:
        """Prepared once."""
        if self.smoke:
            side, samples, classes = max(16, side // 4), min(samples, 600), min(classes, 50)
        return _prepared(self.folder, splits, side, samples, classes, calib)

    def recipe(self, model: str, batch: int) -> Recipe:
        """SGD with momentum, flips and shifts."""
        if self.smoke:
            model, batch = "cifar-resnet8", min(batch, 64)
        return Recipe(
            model=model, epochs=1, batch_size=batch,
            optimizer=Optimizer(lr=1e-3), augment=Augment(shift=4),
        )  # fmt: skip

    def wait(self) -> None:
        """For all that the device was given."""
        if self.cuda:
            torch.cuda.synchronize()


@cache
def _prepared(
    folder: Path, splits: int, side: int, samples: int, classes: int, calib: float
) -> Prepared:
    root = folder / f"{splits}-{side}-{samples}-{classes}-{calib}"
    return noise_shards(root, splits, side, samples, classes, calib)


def machine(bench: Bench) -> dict[str, Any]:
    """TB/s of a copy, read and written; TFLOP/s."""
    side, size = (256, 1 << 20) if bench.smoke else (8192, 4 << 30)
    source = torch.empty(size, dtype=torch.int8, device=bench.device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=bench.device).bfloat16() for _ in range(2))
    copied = _seconds(bench, lambda: target.copy_(source), 10)
    multiplied = _seconds(bench, lambda: a @ b, 10)
    return {
        "copy_tb_per_s": round(2 * size / copied / 1e12, 2),
        "bf16_tflop_per_s": round(2 * side**3 / multiplied / 1e12, 1),
        "cores": len(os.sched_getaffinity(0)),
    }


def _seconds(bench: Bench, work: Callable[[], object], times: int) -> float:
    """Of one call, of several in a row, after one."""
    work()
    bench.wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    bench.wait()
    return (time.perf_counter() - start) / times


def digests(bench: Bench) -> dict[str, Any]:
    """Samples whose checksum is not the CPU's: of 20,000, streamed (three passes) and resident."""
    data = bench.shards(36, 56, 20_000)
    order = np.random.default_rng(1).permutation(data.manifest.written("train"))
    expected = _checksums(_loader(data, torch.device("cpu")).batches(order), lambda: None)
    side = 64 if bench.smoke else 8192
    heavy = torch.randn(side, side, device=bench.device).bfloat16()

    def lag() -> None:  # some 15 ms of the device's time, of which the host sees nothing
        for _ in range(10):
            torch.mm(heavy, heavy)

    found: dict[str, Any] = {"samples": len(order)}
    loader = _loader(data, bench.device)
    for turn in range(3):
        wrong = (_checksums(loader.batches(order), lag) != expected).sum()
        found[f"wrong_streamed_{turn}"] = int(wrong)
    lag()
    resident = feed(loader, "resident", False)
    found["wrong_resident"] = int((_checksums(resident.batches(order), lag) != expected).sum())
    return found


def _loader(data: Prepared, device: torch.device, batch: int = 256) -> ShardLoader:
    return ShardLoader(data, "train", K, batch_size=batch, device=device)


def _checksums(batches: Iterable[tuple[Tensor, Tensor]], before: Callable[[], None]) -> Tensor:
    """(n,) int64, on the CPU: of the bytes of each sample, by their place."""
    found = []
    for values, labels in batches:
        before()
        flat = values.flatten(1).long()
        weights = torch.arange(1, flat.shape[1] + 1, device=flat.device) * 0x9E3779B1
        found.append((flat * weights).sum(1) + labels)
    return torch.cat(found).cpu()


CASES = (  # network, splits, px, batch, classes
    ("cifar-resnet20", 4, 32, 128),
    ("cifar-resnet20", 4, 32, 512),
    ("air", 4, 32, 1024),
    ("resnet34", 36, 56, 256),
    ("resnet50", 36, 56, 256),
)


def step(bench: Bench) -> dict[str, Any]:
    """By network and batch size."""
    found = {}
    for model, splits, side, batch in CASES:
        data, recipe = bench.shards(splits, side, 20_000), bench.recipe(model, batch)
        loop = Loop(data, recipe, bench.device)
        loader = _loader(data, bench.device, loop.plan.batch)
        feeds = {kind: feed(loader, kind, False) for kind in ("stream", "resident")}
        order, steps = loop.plan.order(0), loop.plan.steps
        values, labels = next(feeds["resident"].batches(order))
        fixed = values.clone(), labels.clone()
        loop.rate(same(fixed), min(steps, 30))  # warm-up
        ways = {kind: _epochs(loop, partial(f.batches, order)) for kind, f in feeds.items()}
        ways["fixed"] = _epochs(loop, partial(same, fixed))
        bare = Bare(data, K, recipe, loop.plan.batch, bench.device, SECONDS)
        ways["bare"] = bare.rate
        rates = dict.fromkeys(ways, 0.0)
        for _ in range(1 if bench.smoke else 2):
            for name, way in ways.items():
                rates[name] = max(rates[name], way())
        found[f"{model} {side}px batch {batch}"] = {
            **{f"{name}_images_per_s": round(rate) for name, rate in rates.items()},
            **{f"{k}_of_fixed": round(rates[k] / rates["fixed"], 3) for k in feeds},
            **{f"{k}_of_bare": round(rates[k] / rates["bare"], 3) for k in feeds},
        }
    return found


def _epochs(loop: Loop, batches: Callable[[], Any]) -> Callable[[], float]:
    """Images/s over whole epochs, without the start of the first: FFCV's thread is up by then."""

    def rate() -> float:
        images, seconds = 0, 0.0
        while seconds < SECONDS:
            source = batches()
            loop.rate(source, 1)
            steps = loop.plan.steps - 1
            found = loop.rate(source, steps)
            source.close()
            images += steps * loop.plan.batch
            seconds += steps * loop.plan.batch / found
        return images / seconds

    return rate


_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_COUNTED = ("cudaLaunchKernel", "cudaMemcpyAsync", "aten::item", *_WAITS)


def syncs(bench: Bench) -> dict[str, Any]:
    """A step: launches, copies, waits, milliseconds of the host and of the device."""
    found = {}
    for model, splits, side, batch in (CASES[0], *CASES[2:4]):
        data, recipe = bench.shards(splits, side, 20_000), bench.recipe(model, batch)
        loop = Loop(data, recipe, bench.device)
        batches = feed(_loader(data, bench.device, loop.plan.batch), "resident", False).batches(
            loop.plan.order(0)
        )
        loop.rate(batches, 3)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.cuda
        steps = min(5, loop.plan.steps - 3)
        with profile(activities=activities) as profiled:
            loop.rate(batches, steps)
        events = profiled.key_averages()
        counts = dict.fromkeys(_COUNTED, 0.0)
        for event in events:
            for name in counts:
                if event.key in (name, f"{name}ExC"):  # how the runtime calls some launches
                    counts[name] += event.count / steps
        device = sum(getattr(event, "self_device_time_total", 0.0) for event in events)
        found[f"{model} {side}px batch {batch}"] = {
            **{name: round(count, 1) for name, count in counts.items()},
            "device_ms_a_step": round(device / steps / 1000, 3),
        }
    return found


def speed(bench: Bench) -> dict[str, Any]:
    """Images/s of training on a resident sub36 shard, and what follows from it."""
    data = bench.shards(36, 56, 21_000, CLASSES_21K)
    found = {}
    for model in ("resnet34", "resnet50"):
        for batch in (256, 1024):
            loop = Loop(data, bench.recipe(model, batch), bench.device)
            source = feed(_loader(data, bench.device, loop.plan.batch), "resident", False)
            order = loop.plan.order(0)
            values, labels = next(source.batches(order))
            loop.rate(same((values, labels)), 10)
            rate = _epochs(loop, partial(source.batches, order))()
            found[f"{model}, batch {batch}"] = {
                "images_per_s": round(rate),
                "hours_for_100_epochs_of_21k": round(100 * TRAIN_21K / rate / 3600, 1),
            }  # fmt: skip
    return found


def compiled(bench: Bench) -> dict[str, Any]:
    """`--compile`, which captures the network's passes as CUDA graphs: images/s on one fixed batch,
    against the same without, and the seconds that the first two steps take.
    """
    found = {}
    for model, splits, side, batch in CASES[:3]:
        data, recipe = bench.shards(splits, side, 20_000), bench.recipe(model, batch)
        rates, took = [], 0.0
        for wanted in (False, True):
            loop = Loop(data, recipe, bench.device, compiled=wanted)
            loader = _loader(data, bench.device, loop.plan.batch)
            values, labels = next(loader.batches(loop.plan.order(0)))
            fixed = values.clone(), labels.clone()
            start = time.perf_counter()
            loop.rate(same(fixed), 2)
            took = time.perf_counter() - start
            loop.rate(same(fixed), 10)
            rates.append(_epochs(loop, partial(same, fixed))())
        found[f"{model} {side}px batch {batch}"] = {
            "images_per_s": round(rates[0]), "compiled_images_per_s": round(rates[1]),
            "ratio": round(rates[1] / rates[0], 2), "seconds_to_compile": round(took, 1),
        }  # fmt: skip
    return found


def memory(bench: Bench) -> dict[str, Any]:
    """By the side of the input in px."""
    found = {}
    for side, splits in ((224, 1), (112, 4), (56, 16)):
        data = bench.shards(splits, side, 4200)
        peak = _peak(bench, data, 256)
        sizes = (512, 1024, 2048, 4096)
        largest = max((b for b in sizes if _peak(bench, data, b)), default=256)
        found[f"{side}px"] = {"peak_gb_batch_256": peak and round(peak / 1e9, 2),
                              "largest_batch_in_32_gb": largest}  # fmt: skip
    return found


def _peak(bench: Bench, data: Prepared, batch: int) -> int | None:
    """Bytes that three steps take at most; None if 32 GB do not hold them."""
    if not bench.cuda:
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT / total))
    try:
        loop = Loop(data, bench.recipe("resnet34", batch), bench.device)
        shape = data.manifest.preparation.input_shape
        values = torch.zeros((loop.plan.batch, *shape), dtype=torch.int8, device=bench.device)
        labels = torch.zeros(loop.plan.batch, dtype=torch.int64, device=bench.device)
        loop.rate(same((values, labels)), 3)
        return torch.cuda.max_memory_allocated()
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _train(data: Prepared, runs: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cli", "train", "--data", str(data.directory), "--runs",
               str(runs), "--name", "run", "--recipe", "cifar-resnet20", *options]  # fmt: skip
    with runs.with_suffix(".log").open("ab") as log:  # for what a run that fails has said
        return subprocess.Popen(command, stdout=log, stderr=log)


def _last_words(runs: Path) -> str:
    """What its runs wrote last."""
    return runs.with_suffix(".log").read_text(errors="replace")[-1500:]


def resume(bench: Bench) -> dict[str, Any]:
    """Tensors of last.pt that equal those of a run left alone, after three kills found alive."""
    data = bench.shards(4, 32, 4000, calib=0.1)  # so that it evaluates, too
    epochs = 4 if bench.smoke else 12
    options = ("--shard", "0", "--deterministic", "--save-every", "7", "--set", f"epochs={epochs}")
    alone = _train(data, bench.folder / "alone", *options)
    steps = epochs * (data.manifest.written("train") // 128)
    kills = [_killed_at(data, bench.folder / "killed", int(at * steps), *options)
             for at in KILLED_AT]  # fmt: skip
    statuses = [_train(data, bench.folder / "killed", *options).wait(), alone.wait()]
    states = []
    for name in ("alone", "killed"):
        (path,) = (bench.folder / name).rglob("last.pt")
        content = torch.load(path, weights_only=True, map_location="cpu")
        states.append({**content["model"], **_momenta(content["optimizer"])})
    equal = sum(torch.equal(value, states[1][name]) for name, value in states[0].items())
    found = {"statuses": statuses, "steps": steps, "killed_after_steps": kills,
             "tensors": len(states[0]), "equal": equal}  # fmt: skip
    if any(statuses) or None in kills:
        found |= {name: _last_words(bench.folder / name) for name in ("alone", "killed")}
    return found


def _momenta(state: dict[str, Any]) -> dict[str, Tensor]:
    return {
        f"{number}/{name}": value
        for number, values in state["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _killed_at(data: Prepared, runs: Path, target: int, *options: str) -> int | None:
    """The step of its last checkpoint, once it has passed `target`; None if it had ended."""
    process = _train(data, runs, *options)
    reached = None
    while process.poll() is None and reached is None:
        for path in runs.rglob("last.pt"):
            try:
                step = torch.load(path, weights_only=True, map_location="cpu")["progress"]["step"]
            except (OSError, RuntimeError, KeyError, EOFError):
                continue
            reached = int(step) if step >= target else None
        time.sleep(0.02)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return reached
    return None


def jobs(bench: Bench) -> dict[str, Any]:
    """Wall seconds for four shards of 10,000 planes, start of processes and all."""
    data = bench.shards(4, 32, 20_000, calib=0.05)
    epochs = 1 if bench.smoke else 8
    found: dict[str, Any] = {"epochs": epochs}
    for count in (1, 4):
        start = time.perf_counter()
        options = ("--shard", "all", "--jobs-per-gpu", str(count), "--set", f"epochs={epochs}")
        if not bench.cuda:
            options = ("--shard", "all", "--jobs", str(count), "--set", f"epochs={epochs}")
        status = _train(data, bench.folder / f"jobs{count}", *options).wait()
        found[f"seconds_{count}_at_once"] = round(time.perf_counter() - start, 1)
        found[f"status_{count}_at_once"] = status
        if status:
            found[f"said_{count}_at_once"] = _last_words(bench.folder / f"jobs{count}")
    return found


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part
    for part in (machine, digests, step, syncs, compiled, speed, memory, resume, jobs)
}


def main() -> None:
    """A line for each part; one that fails does not take the others along."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", default=list(PARTS))
    parser.add_argument("--budget", type=float, default=480.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.smoke:
        raise SystemExit("benchmarks/gpu.py: there is no GPU here")
    began = time.monotonic()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.smoke)
        for name in options.parts:
            start = time.monotonic()
            if start - began > options.budget:
                found: dict[str, Any] = {"left_out": "the budget is spent"}
            else:
                try:
                    found = PARTS[name](bench)
                except Exception as error:
                    found = {"error": repr(error)[:500]}
            head = {"benchmark": f"gpu-{name}", "gpu": gpu, "torch": torch.__version__,
                    "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
            line = json.dumps({**head, **found})
            print(line, flush=True)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
