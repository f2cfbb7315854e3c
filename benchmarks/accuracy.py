"""The accuracy study: what a classifier reaches on CIFAR-10 for what its training costs.

    python benchmarks/accuracy.py --images DIR --work DIR --out FILE [--width 64] [--epochs 10]
                                  [--seeds 3] [--jobs 1] [--budget SECONDS] [--only WORDS] [--list]
    python benchmarks/accuracy.py --out FILE --table | --plot PNG

DIR of images: {train,val}/<class>/<image>. The cells are those of benchmarks/grid.py; each that is
finished is a JSON line in FILE, and those that FILE has are not done again. Networks lie in --work,
where a stopped study goes on. Everything is chosen on calib (5 % of train), figures are of val.
--jobs: how many networks are trained at once, on a GPU; one on a CPU.
"""

import argparse
import base64
import fcntl
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, prepare_quietly
from grid import DATA, Cell, Member, cells

from pipeline.format import manifest
from pipeline.preparation import preparation
from trainer.data.selection import Prepared
from trainer.process.mps import shared_gpus
from trainer.recipes.cookbook import resolve
from trainer.recipes.recipe import Recipe

CALIB = 0.05
SPLITS = ("calib", "val")


@dataclass(frozen=True)
class Study:
    """Where things lie, and what a unit of cost is: `epochs` of the whole image at `width`."""

    images: Path
    work: Path
    width: int
    epochs: int
    limit: int | None = None

    def data(self, name: str) -> Prepared:
        """Prepared once."""
        return _prepared(self, name)

    def recipe(self, member: Member, cost: float, seed: int) -> Recipe:
        """Of a network that may cost so many units."""
        found = resolve("ours/air").recipe
        found = replace(found, model_args={"width": self.width_of(member), "pools": member.pools})
        samples = self.data("whole").manifest.written("train")
        batch = min(found.batch_size, samples)
        units = self.flops(Member("whole", (0,), 1.0)) / self.flops(member)
        steps = max(8, round(cost * units * self.epochs * (samples // batch)))
        return replace(
            found, epochs=0, iterations=steps, eval_every=steps, batch_size=batch, seed=seed
        )

    def width_of(self, member: Member) -> int:
        """Channels of its first block."""
        return max(1, round(self.width * member.width))

    def flops(self, member: Member) -> int:
        """Of a forward pass of one sample."""
        width = self.width_of(member)
        found = self.data(member.data).manifest
        channels, size, _ = found.preparation.input_shape
        channels *= len(member.planes)
        return _flops(len(found.classes), channels, size, width, member.pools)


@cache
def _prepared(study: Study, name: str) -> Prepared:
    directory = prepare(study, name, len(os.sched_getaffinity(0)))
    return Prepared(directory, manifest.load(directory))


def prepare(study: Study, name: str, workers: int) -> Path:
    """The directory of one of DATA; at once where it is there."""
    options = dict(DATA[name])
    options |= {"calib": CALIB} | ({"limit": study.limit} if study.limit else {})
    prep = preparation("cifar10", options.pop("splits"), **options)
    return prepare_quietly(prep, study.images, study.work / "data" / name, workers)[0]


@cache
def _flops(classes: int, channels: int, size: int, width: int, pools: int) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainer import models

    with torch.device("meta"):
        network = models.build(
            "air", classes=classes, channels=channels, size=size, width=width, pools=pools
        )
        with FlopCounterMode(display=False) as counter:
            network.eval()(torch.empty(1, channels, size, size))
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Network:
    """One network to be trained. first: the directory of the one whose weights it starts from."""

    data: Path
    planes: tuple[int, ...]
    recipe: Recipe
    directory: Path
    first: Path | None = None


def networks(study: Study, cell: Cell, seed: int) -> list[Network]:
    """The members of a cell, for one seed."""
    found: list[Network] = []
    for member in cell.members:
        recipe = study.recipe(member, cell.cost * member.share, seed + member.seed)
        first = None if member.after is None else found[member.after].directory
        planes, steps = "+".join(map(str, member.planes)), recipe.iterations
        width, pools = recipe.model_args["width"], recipe.model_args["pools"]
        name = f"{member.data}-k{planes}-w{width}-p{pools}-i{steps}-s{recipe.seed}"
        name += "" if first is None else f"-after-{first.name}"
        data = study.data(member.data).directory
        found.append(Network(data, member.planes, recipe, study.work / "runs" / name, first))
    return found


def train(network: Network, threads: int) -> dict[str, Any]:
    """Train it, or find it trained; its logits lie beside it afterwards. Seconds and steps."""
    import torch

    from trainer.data.groups import open_split
    from trainer.process.device import pick_device
    from trainer.record.rundir import RunDir
    from trainer.run.carry_out import carry_out
    from trainer.run.evaluate import predict_split
    from trainer.run.network import load_predictor
    from trainer.run.spec import RunSpec

    torch.set_num_threads(threads)
    path, run = network.directory / "logits.npz", RunDir(network.directory)
    if not path.exists():
        carry_out(
            RunSpec(data=network.data, planes=network.planes, recipe=network.recipe,
                    directory=network.directory, init_run=network.first),
            lambda name, total, unit: nullcontext(lambda count, note: None),
        )  # fmt: skip
        data, device = Prepared(network.data, manifest.load(network.data)), pick_device()
        predictor = load_predictor(run, data.manifest, network.planes, device)
        found: dict[str, Any] = {}
        for split in SPLITS:
            batch = min(1000, data.manifest.written(split))
            loader = open_split(data, split, network.planes, batch_size=batch, device=device)
            logits, labels = predict_split(predictor, loader)
            found |= {split: logits.numpy().astype(np.float32), f"{split}_labels": labels.numpy()}
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, **found)
        path.with_suffix(".part").rename(path)
        for checkpoint in (run.last, run.previous):
            checkpoint.unlink(missing_ok=True)
    result = run.result or {}
    return {"seconds": result["train_seconds"], "steps": result["steps"]}


def conclude(
    study: Study, cell: Cell, seed: int, members: list[Network], figures: list[dict[str, Any]]
) -> dict[str, Any]:
    """The line of a finished cell."""
    import torch

    from trainer.fusion import weights as fusion
    from trainer.fusion.pooling import Pooling

    loaded = [np.load(member.directory / "logits.npz") for member in members]
    calib, val = (
        fusion.Answers(
            torch.from_numpy(np.stack([found[split] for found in loaded])),
            torch.from_numpy(loaded[0][f"{split}_labels"]),
        )
        for split in SPLITS
    )
    poolings = {"average": fusion.average(calib, "logits").pooling}
    if len(members) > 1:
        poolings["geometric"] = fusion.geometric(calib, "logits").pooling
        poolings["published"] = fusion.geometric(val, "logits").pooling  # ranks, q of val: it leaks
    poolings["learned"] = Pooling(tuple(fusion.learned(calib)))
    methods, hits = {}, np.empty(0, np.bool_)
    for name, pooling in poolings.items():  # learned is the last
        fused = fusion.pool(val, pooling)
        hits = (fused.argmax(1) == val.labels).numpy()
        methods[name] = {
            "top1": round(float(hits.mean()), 4),
            "nll": round(fusion.nll(fused, val.labels), 4),
            "calib_top1": round(fusion.top1(fusion.pool(calib, pooling), calib), 4),
        }
    flops = [
        3 * study.flops(member) * network.recipe.batch_size * figure["steps"]
        for member, network, figure in zip(cell.members, members, figures, strict=True)
    ]
    return {
        "cell": cell.name, "cost": cell.cost, "seed": seed, "width": study.width,
        "networks": len(members),
        "train_pflop": round(sum(flops) / 1e15, 4),
        "largest_share": round(max(flops) / sum(flops), 3),
        "steps": [figure["steps"] for figure in figures],
        "images": sum(n.recipe.batch_size * f["steps"]
                      for n, f in zip(members, figures, strict=True)),
        "inference_mflop": round(sum(study.flops(m) for m in cell.members) / 1e6, 1),
        "seconds": round(sum(figure["seconds"] for figure in figures), 1),
        "alone_top1": [round(fusion.top1(each, val), 4) for each in val.logits],
        "weights": [round(w, 4) for w in poolings["learned"].weights],
        **methods,
        "hits": base64.b64encode(np.packbits(hits).tobytes()).decode(),
    }  # fmt: skip


def carry_on(study: Study, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All cells that are not there yet, a line of each as soon as its last network is trained."""
    done = finished(options.out)
    wanted = [
        (cell, seed)
        for cell in chosen(options.only)
        for seed in range(options.seeds)
        if (cell.name, cell.cost, seed) not in done
    ]
    if study.limit:  # to see that all of it runs
        wanted = [(cell, seed) for cell, seed in wanted if cell.cost == 1.0]
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    context = multiprocessing.get_context("spawn")
    end = time.monotonic() + options.budget
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        needed = {"whole"} | {m.data for cell, _ in wanted for m in cell.members}
        each = max(2, len(os.sched_getaffinity(0)) // max(1, min(len(needed), options.jobs)))
        wait([pool.submit(prepare, study, name, each) for name in sorted(needed)])
        running: dict[Future[dict[str, Any]], Path] = {}
        trained: dict[Path, dict[str, Any]] = {}
        waiting = [(cell, seed, networks(study, cell, seed)) for cell, seed in wanted]
        while waiting:
            ready = (
                network
                for _, _, members in waiting
                for network in members
                if network.directory not in trained
                and network.directory not in running.values()
                and (network.first is None or network.first in trained)
            )
            while len(running) < options.jobs and time.monotonic() < end:
                network = next(ready, None)
                if network is None:
                    break
                running[pool.submit(train, network, threads)] = network.directory
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trained[running.pop(future)] = future.result()
            for entry in [e for e in waiting if all(n.directory in trained for n in e[2])]:
                waiting.remove(entry)
                cell, seed, members = entry
                figures = [trained[n.directory] for n in members]
                yield conclude(study, cell, seed, members, figures)


def chosen(words: str | None) -> list[Cell]:
    """Cells whose name or cost is among the words, separated by commas; all without any."""
    if not words:
        return cells()
    wanted = [word.strip() for word in words.split(",")]
    return [cell for cell in cells() if cell.name in wanted or f"x{cell.cost:g}" in wanted]


def finished(path: Path) -> set[tuple[str, float, int]]:
    """(cell, cost, seed) of each line."""
    return {(line["cell"], line["cost"], line["seed"]) for line in lines(path)}


def lines(path: Path) -> list[dict[str, Any]]:
    """What a study has found so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    """Go on with the study, or show what it has found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--work", type=Path, default=Path("accuracy"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds; none begins later")
    parser.add_argument("--only", help="names of cells, or x1, x4 for their cost; with commas")
    parser.add_argument("--limit", type=int, help="images of a split, to see that all of it runs")
    for name in ("list", "table"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.table or options.plot:
        from accuracy_report import plot, table

        found = lines(options.out)
        print(table(found)) if options.table else plot(found, options.plot)
        return
    if options.list:
        done = finished(options.out)
        for cell in chosen(options.only):
            have = sum((cell.name, cell.cost, seed) in done for seed in range(options.seeds))
            print(f"{have}/{options.seeds}  x{cell.cost:<5g} {cell.name:<20} {cell.why}")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    with (options.work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # never two at once
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()
        study = Study(options.images, options.work.resolve(), options.width, options.epochs,
                      options.limit)  # fmt: skip
        several = options.jobs > 1 and torch.cuda.is_available()
        with ExitStack() as stack:
            if several:
                os.environ.update(stack.enter_context(shared_gpus()))
            _write(study, options, device)


def _write(study: Study, options: argparse.Namespace, device: str) -> None:
    for line in carry_on(study, options):
        with options.out.open("a") as file:
            file.write(json.dumps({**line, "epochs": options.epochs, "device": device}) + "\n")
        name = f"{line['cell']} x{line['cost']:g} seed {line['seed']}"
        print(f"{name}: {line['learned']['top1']:.2%} in {line['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
