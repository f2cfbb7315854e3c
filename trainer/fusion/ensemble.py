"""Fits every way to fuse the trained networks of a group, and measures them all.

What is fitted is fitted on the split that the best epochs were chosen by, and figures are of one
that nothing was chosen by.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from pipeline.files import write_json
from pipeline.format import samples
from trainer.console import METHODS
from trainer.data.selection import Prepared, selection_split
from trainer.fusion import cache, weights
from trainer.fusion.cost import cost, summed
from trainer.fusion.measure import Measured, measure
from trainer.fusion.members import Member, finished_members, missing_planes
from trainer.fusion.outcomes import save_outcomes
from trainer.fusion.panel import Panel
from trainer.fusion.pooling import Pooling
from trainer.fusion.weights import Answers, Fitted
from trainer.process.device import free_memory

log = logging.getLogger(__name__)
NAME = "ensemble.json"
FEW = 500  # samples to fit on
_POINTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 36, 64, 100)  # numbers of networks in a curve
ProgressBar = Callable[[str, int, str], AbstractContextManager[Callable[[int, str], None]]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to fuse. method: what predictions are made with. over: what all methods but `learned`
    pool. calib_samples: to fit on, at most. flip: networks see mirror images too, where exact.
    published_q: fuse as the published code does, too. planes: only the networks of these.
    """

    method: str = "learned"
    over: str = "logits"
    calib_samples: int = 10_000
    flip: bool = False
    published_q: float | None = None
    planes: list[tuple[int, ...]] | None = None


@dataclass(frozen=True)
class _Curve:
    """Poolings of the first m networks of an order."""

    order: list[int]
    poolings: list[Pooling]
    sizes: list[int]


def ensemble(
    data: Prepared,
    group: Path,
    device: torch.device,
    progress_bar: ProgressBar,
    options: Options | None = None,
) -> dict[str, Any]:
    """Writes ensemble.json and the outcome of each sample beside the runs of the group; the
    content of the former.
    """
    options = options or Options()
    members = finished_members(group, data, options.planes)
    missing = missing_planes(members, data.manifest)
    if missing and options.planes is None:
        listed = ", ".join(map(str, missing))
        log.warning("no network sees planes %s: the others are fused", listed)
    panel = Panel(members, data, device, flip=options.flip)
    fitted_on, measured = splits(data)
    calib = fitting_answers(panel, fitted_on, options.calib_samples, progress_bar)
    fused = _fit_all(calib, len(members), options.over)
    curves = {} if calib is None else _curves(calib)
    result: dict[str, Any] = {
        "data": data.described,
        "data_digest": data.manifest.digest,
        "recipe": group.name,
        "fitted_on": fitted_on,
        "fitted_samples": 0 if calib is None else len(calib.labels),
        "measured_on": measured[-1] if measured else None,
        "over": options.over,
        "flip": options.flip,
        "missing": missing,
        "networks": [_network_row(member, data, k, calib) for k, member in enumerate(members)],
        "method": options.method if options.method in fused else "average",
    }
    found = {split: _measured(panel, split, fused, curves, progress_bar) for split in measured}
    if options.published_q is not None and measured:
        split = measured[-1]
        fused["published"] = _published(panel, split, calib, options.published_q, progress_bar)
        found[split] = _measured(panel, split, fused, curves, progress_bar)
    result["fused"] = {name: fit.pooling.row() | fit.notes for name, fit in fused.items()}
    for split, of_split in found.items():
        _add(result, split, of_split, curves)
    result["cost"] = summed([row["cost"] for row in result["networks"]])
    if measured:
        last = measured[-1]
        save_outcomes(group, data, last, found[last].labels, found[last].fused)
    write_json(group / NAME, result)
    return result


def splits(data: Prepared) -> tuple[str | None, list[str]]:
    """What is fitted on, and what is measured on; the last of these is the figure."""
    fitted = selection_split(data.manifest)
    counts = data.manifest.counts
    there = [split for split in ("val", "test") if counts.get(split, {}).get("written")]
    measured: list[str] = [split for split in there if split != fitted]
    if not measured:
        log.warning("%s has no split to measure on: nothing is measured", data.directory)
    return fitted, measured


def fitting_answers(
    panel: Panel, split: str | None, most: int, progress_bar: ProgressBar
) -> Answers | None:
    """What the networks say of the samples that weights are fitted on, chosen by their ids; None
    where there are none.
    """
    if split is None:
        log.warning("no split is left to fit weights on: only the average is fused")
        return None
    data = panel.data
    networks, classes = len(panel.members), len(data.manifest.classes)
    # so that memory does not grow with what is classified
    most = min(most, max(1, cache.MOST // (4 * networks * classes)))
    chosen = _by_id(data, split, most)
    count = data.manifest.written(split) if chosen is None else len(chosen)
    if count < FEW:
        log.warning(
            "weights are fitted on %d samples of %s: below %d they are left to chance; prepare "
            "with a larger --calib", count, split, FEW,
        )  # fmt: skip
    with progress_bar(f"answers on {split}", count, "images") as advance:

        def shown() -> Iterator[tuple[Tensor, Tensor]]:
            for logits, labels in cache.answers(panel, split, chosen):
                yield logits, labels
                advance(len(labels), "")

        logits, labels = cache.gathered(shown(), networks, count, classes)
    if panel.device.type == "cuda" and logits.nbytes < free_memory(panel.device) / 4:
        return Answers(logits.to(panel.device), labels.to(panel.device))
    return Answers(logits, labels)


def _by_id(data: Prepared, split: str, most: int) -> NDArray[np.int64] | None:
    """Places of the samples whose ids have the smallest hashes; None for all."""
    if data.manifest.written(split) <= most:
        return None
    ids = samples.ids(data.directory, split)
    hashes = np.array([xxhash.xxh3_64_intdigest(str(name).encode()) for name in ids], np.uint64)
    return np.sort(np.argsort(hashes, kind="stable")[:most])


def _fit_all(calib: Answers | None, networks: int, over: str) -> dict[str, Fitted]:
    """Each method that makes sense of so many networks."""
    if calib is None:
        return {"average": Fitted(Pooling((1 / networks,) * networks, over=over))}
    methods = METHODS if networks > 1 else ("learned", "average")
    fitted = {method: weights.fit(calib, method, over) for method in methods}
    if fitted["learned"] is None:
        log.warning(
            "learned weights are all 0, as no network knows anything of the split that they are "
            "fitted on: train longer; the average is used"
        )
    return {method: found for method, found in fitted.items() if found is not None}


def _curves(calib: Answers) -> dict[str, _Curve]:
    """Accuracy against the number of networks: in the best order on calib, and as they come."""
    networks = len(calib.logits)
    if networks == 1:
        return {}
    orders = {"best": weights.best_order(calib), "shards": [*range(networks)]}
    sizes = [*(size for size in _POINTS if size < networks), networks]
    found = {}
    for name, order in orders.items():
        fitted = [(order[:size], weights.learned(calib, order[:size])) for size in sizes]
        poolings = [Pooling(tuple(w)) if any(w) else _equal(of, networks) for of, w in fitted]
        found[name] = _Curve(order, poolings, sizes)
    return found


def _equal(chosen: list[int], networks: int) -> Pooling:
    return Pooling(tuple(1 / len(chosen) if k in chosen else 0.0 for k in range(networks)))


def _measured(
    panel: Panel,
    split: str,
    fused: dict[str, Fitted],
    curves: dict[str, _Curve],
    progress_bar: ProgressBar,
) -> Measured:
    samples = panel.data.manifest.written(split)
    with progress_bar(f"measuring on {split}", samples, "images") as go:
        return measure(
            cache.answers(panel, split),
            len(panel.members),
            samples,
            {name: fit.pooling for name, fit in fused.items()},
            [pooling for curve in curves.values() for pooling in curve.poolings],
            go,
        )


def _published(
    panel: Panel, split: str, calib: Answers | None, q: float, progress_bar: ProgressBar
) -> Fitted:
    """Ranks from the split that is reported, as published: they leak."""
    accuracy = [one.top1.mean() for one in _measured(panel, split, {}, {}, progress_bar).networks]
    order = sorted(range(len(accuracy)), key=lambda k: -accuracy[k])
    pooling = Pooling(tuple(q * (1 - q) ** order.index(k) for k in range(len(order))))
    if calib is not None:
        pooling = weights.with_temperature(calib, pooling)
    return Fitted(pooling, {"q": q, "leaks": f"ranked by accuracy on {split}"})


def _network_row(member: Member, data: Prepared, k: int, calib: Answers | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "shard": member.shard,
        "planes": list(member.planes),
        "digest": member.digest,
        "cost": cost(member, data.manifest),
    }
    if calib is not None:
        row["fitted_top1"] = weights.top1(calib.logits[k], calib)
    return row


def _add(result: dict[str, Any], split: str, found: Measured, curves: dict[str, _Curve]) -> None:
    """The figures of a split."""
    for row, of_network in zip(result["networks"], found.networks, strict=True):
        row[split] = of_network.figures()
    for name, of_method in found.fused.items():
        result["fused"][name][split] = of_method.figures()
    reliability = found.fused[result["method"]].reliability()
    result.setdefault("reliability", {})[split] = reliability
    shards = [row["shard"] for row in result["networks"]]
    accuracy = iter(found.curve)
    rows = {
        name: {
            "order": [shards[k] for k in curve.order],
            "networks": curve.sizes,
            "top1": [next(accuracy) for _ in curve.sizes],
        }
        for name, curve in curves.items()
    }
    networks = len(found.differ)
    mean = found.differ.sum() / (networks * (networks - 1)) if networks > 1 else 0.0
    result.setdefault("curve", {})[split] = rows
    result.setdefault("disagreement", {})[split] = {
        "mean": float(mean),
        "pairs": found.differ.round(5).tolist(),
    }


def add_comparisons(group: Path, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """What was compared with the group belongs to its figures."""
    result["against"] = rows
    write_json(group / NAME, result)
