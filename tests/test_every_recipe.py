"""Every recipe through the dry run and three steps of training, on data of its rows' shapes.

What cannot matter in three steps is put to one value, networks are made thin and large planes
smaller; each combination that is then left is trained once. Built at full size, for the planes
that are meant, they are in tests/test_rows.py.
"""

import json
import math
import re
import shutil
import tomllib
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pipeline.catalogue import catalogue
from pipeline.format import manifest
from tests.conftest import spectral_here, write_class_folders
from tests.test_rows import recipes, rows
from trainer import models
from trainer.data.selection import Prepared
from trainer.jobs.dryrun import dry_run
from trainer.jobs.shards import make_specs
from trainer.recipes.cookbook import flat, names, resolve
from trainer.recipes.recipe import Recipe
from trainer.record.rundir import RunDir
from trainer.run.carry_out import carry_out
from trainer.run.network import build_network


class Shape(NamedTuple):
    """What a network sees. `side`: of a plane, px."""

    channels: int
    splits: int
    side: int


class Case(NamedTuple):
    """A combination that is trained: its data, and all values of a recipe."""

    shape: Shape
    recipe: str


Cases = dict[Case, list[str]]  # with the recipes that it stands for

# --- data --------------------------------------------------------------------------------------

LARGE = 72  # px; in place of 112 and 224: more than 64 px, from where on stems are other ones
MEDIUM = 40  # px; in place of 56 and 64
PLANES = [Shape(3, 1, 32), Shape(3, 4, 16)]  # for ours of small images
PHOTOGRAPHS = [Shape(3, 16, MEDIUM), Shape(3, 4, LARGE)]  # and of others
WHOLE = [Shape(3, 1, LARGE)]  # for those whose name ends so


def shape_of(row: dict[str, Any]) -> Shape:
    spec, splits = catalogue()[row["dataset"]], row.get("splits", 1)
    side = (row.get("size") or spec.size_for(splits)) // math.isqrt(splits)
    return Shape(spec.channels, splits, LARGE if side > 64 else MEDIUM if side > 32 else side)


@cache
def shapes() -> dict[str, set[Shape]]:
    """Of each recipe, those of its rows; where only variants of a file are rows, of these."""
    own, of_file = defaultdict[str, set[Shape]](set), defaultdict[str, set[Shape]](set)
    for row in rows():
        own[row["recipe"]].add(shape_of(row))
        of_file[row["recipe"].partition("@")[0]].add(shape_of(row))
    for name in names():
        if name.startswith("ours/"):
            planes = PHOTOGRAPHS if name.startswith("ours/resnet") else PLANES
            own[name] |= set(WHOLE if name.endswith("-whole") else planes)
    return {name: own[name] or of_file[name] for name in names()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Shape], Prepared]:
    """Real shards of a shape; whole images of the largest side keep their aspect, as is meant."""
    root = tmp_path_factory.mktemp("shapes")
    source = write_class_folders(root / "source", {"train": 4, "val": 1})

    @cache
    def prepare(shape: Shape) -> Prepared:
        size, out = shape.side * math.isqrt(shape.splits), root / "-".join(map(str, shape))
        options = ["--splits", shape.splits, "--channels", shape.channels]
        if shape.splits == 1 and shape.side == LARGE:
            size, options = math.ceil(size * 8 / 7), [*options, "--resize", "shortest"]
        done = spectral_here(
            "prepare", "toy", "--source", source, "--out", out, "--size", size,
            "--calib", 0.2, "--workers", 1, *options,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (folder,) = (out / "toy").iterdir()
        found = Prepared(folder, manifest.load(folder))
        assert found.manifest.preparation.input_shape == (shape.channels, shape.side, shape.side)
        return found

    return prepare


# --- recipes -----------------------------------------------------------------------------------

# By the name: two blocks a stage or the fewest that there are, thin ones where a name says the
# width. {}: 14 layers, or 20 of bottlenecks.
THIN = (
    (r"(cifar|preact|se-preact)-resnet\d+", r"\1-resnet{}"),
    (r"wrn-\d+-\d+", "wrn-16-1"),
    (r"densenet-\d+-\d+", "densenet-10-4"),
    (r"densenet-bc-\d+-\d+", "densenet-bc-16-4"),
    (r"pyramidnet-\d+-\d+", "pyramidnet-{}-12"),
    (r"imagenet-pyramidnet-200-\d+", "imagenet-pyramidnet-50-12"),
    (r"resnext\d+-\d+x\d+d", "resnext20-2x4d"),
    (r"imagenet-resnext50-\d+x\d+d", "imagenet-resnext50-2x4d"),
    (r"shake-shake\d+-2x\d+d", "shake-shake14-2x4d"),
    (r"resnet(18|34)", "resnet18"),
    (r"resnet(18|34)x1", "resnet18x1"),
    (r"resnet(50|101|152)x1", "resnet50x1"),
    (r"resnet\d+x\d+", "resnet14x1"),
)
FOUR_STAGES = ("resnet18x1", "resnet50x1")  # minutes in float16 on a CPU: others are trained so
WIDTH = 8  # where it is an argument
ONE = {  # for all
    "epochs": 0,
    "iterations": 3,
    "eval_every": 0,
    "seed": 0,
    "batch_size": 2,
    "optimizer.lr": 0.01,
}
ONE_OR_NONE = {  # for all that do not say 0
    "micro_batch": 1,
    "ema": 0.9,
    "label_smoothing": 0.1,
    "optimizer.weight_decay": 1e-4,
    "schedule.milestones": [0.25, 0.5],
    "schedule.gamma": 0.1,
    "schedule.period_epochs": 0.25,
    "schedule.warmup_epochs": 0.25,
    "schedule.final_lr": 1e-4,
    "augment.shift": 2,
    "augment.cutout": 8,
    "augment.mixup": 1.0,
}


def thinned(recipe: Recipe) -> str:
    """The name of the network that stands in for a recipe's."""
    depth = 20 if recipe.model_args.get("bottleneck") else 14
    for pattern, thin in THIN:
        if found := re.fullmatch(pattern, recipe.model):
            return found.expand(thin).format(depth)
    return recipe.model


def standing_in(recipe: Recipe) -> tuple[str, ...]:
    """The settings that leave of it what matters in three steps of a thin network."""
    settings = {"model": thinned(recipe), "repeats": min(recipe.repeats, 2), **ONE}
    if "width" in models.arguments(recipe.model):
        settings["model_args.width"] = WIDTH
    if settings["model"] in FOUR_STAGES:
        settings["precision"] = "fp32"
    for key, value in ONE_OR_NONE.items():
        table, _, last = key.rpartition(".")
        if getattr(getattr(recipe, table) if table else recipe, last):
            settings[key] = value
    return tuple(f"{key}={value}" for key, value in settings.items())


@cache
def cases() -> Cases:
    found: Cases = defaultdict(list)
    for name, recipe in recipes().items():
        left = resolve(name, standing_in(recipe)).recipe.toml()
        for shape in sorted(shapes()[name]):
            found[Case(shape, left)].append(name)
    return found


def traits(case: Case) -> set[tuple[object, ...]]:
    """What a case tries: a network, a stem, and every method that is not the default."""
    values = dict(flat(tomllib.loads(case.recipe)))
    usual = dict(flat(asdict(Recipe(model="any", epochs=1, batch_size=2))))
    words = {(key, value) for key, value in values.items() if isinstance(value, str)}
    numbers = {(key,) for key, value in values.items() if value != usual.get(key)}
    return {("large", case.shape.side == LARGE, values["model"]), (case.shape,), *words, *numbers}


@cache
def short() -> set[Case]:
    """Few cases that together try all that any of them tries; those that try most come first."""
    left = set[tuple[object, ...]]().union(*map(traits, cases()))
    found = set()
    while left:
        case = max(cases(), key=lambda case: (len(traits(case) & left), -case.shape.side))
        found.add(case)
        left -= traits(case)
    return found


def marked(case: Case) -> object:
    """The others are for `make chaos`."""
    name = "-".join(map(str, (*case.shape, cases()[case][0])))
    return pytest.param(case, id=name, marks=() if case in short() else pytest.mark.chaos)


# --- tests -------------------------------------------------------------------------------------


def test_every_recipe_is_one_of_those_trained() -> None:
    """On each shape that it has a row for; and no other network stands in for one's own kind."""
    assert {name for of in cases().values() for name in of} == set(names())
    assert all(shapes().values())
    for recipe in recipes().values():
        assert models._find(thinned(recipe))[0] == models._find(recipe.model)[0]


@pytest.mark.parametrize("case", [*map(marked, cases())])
def test_three_steps(case: Case, prepared: Callable[[Shape], Prepared], tmp_path: Path) -> None:
    """By the ways of `spectral train --dry-run` and `spectral train`, from the recipe's name."""
    name, data = cases()[case][0], prepared(case.shape)
    settings = standing_in(recipes()[name])
    (spec,) = make_specs(data, [(0,)], name, settings, tmp_path, name="x")
    assert spec.recipe.toml() == case.recipe

    said = " ".join(dry_run(spec))
    assert f"{spec.recipe.model} on {case.shape.channels}×{case.shape.side}×" in said
    assert re.search(r"\b3 steps.* images: loss \d+\.\d+ ", said), said
    assert not list(tmp_path.iterdir())

    carry_out(spec, lambda *_: nullcontext(lambda *_: None))
    run = RunDir(spec.directory)
    result = json.loads((run.path / "result.json").read_text())
    assert result["steps"] == 3
    for split in ("calib", "val"):
        assert all(map(math.isfinite, result[split].values()))
        assert result[split]["samples"] == data.manifest.written(split)
    # float16 begins with a scale of the loss that overflows, and goes on with smaller ones
    assert result["nan_grads"] <= 2 * (spec.recipe.precision == "fp16")
    before = build_network(spec.recipe, data.manifest).state_dict()
    after = torch.load(run.last, weights_only=True)["model"]
    kernels = [key for key, weight in before.items() if weight.ndim > 1]
    assert [key for key in kernels if torch.equal(before[key], after[key])] == []
    shutil.rmtree(run.path)  # hundreds of MB, of some
