"""The rows of the source documents, the recipes that train them, and the page that lists both."""

import importlib.util
import json
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.catalogue import catalogue
from tests.conftest import ROOT, spectral_here
from trainer import models
from trainer.methods.schedule import lr_at
from trainer.recipes.cookbook import about, names, resolve
from trainer.recipes.recipe import Recipe

Row = dict[str, Any]
RECIPES = ROOT / "trainer" / "recipes"
DOCUMENTS = {"spectral-imagenet": "001", "cifar-zoo": "002", "small-imagenet": "003"}
# Rows of each table of the documents, counted in them
COUNTS = {
    "001": [13, 2, 4, 11],
    "002": [22, 27, 4, 22, 13, 4, 10, 16, 20, 20, 39, 30, 52, 7, 17, 30, 21, 8, 8],
    "003": [8, 8, 5, 3, 5, 1, 7],
}


@cache
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_recipes", ROOT / "docs" / "recipes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def recipes() -> dict[str, Recipe]:
    """All that ship, by name."""
    return {name: resolve(name).recipe for name in names()}


def rows() -> list[Row]:
    found: list[Row] = generator().load()
    return found


def trained() -> list[tuple[Row, Recipe]]:
    return [(row, recipes()[row["recipe"]]) for row in rows()]


# --- rows --------------------------------------------------------------------------------------


def test_every_row_of_the_documents_is_listed_once() -> None:
    """As many in each table as the document has."""
    tables = Counter((row["document"], row["table"]) for row in rows())
    counts = {
        document: [n for (of, _), n in tables.items() if of == document] for document in COUNTS
    }
    assert counts == COUNTS
    keys = Counter((row["document"], row["table"], row["row"]) for row in rows())
    assert [key for key, n in keys.items() if n > 1] == []


def test_every_row_has_a_recipe_that_ships() -> None:
    """And no group of a document ships a recipe that none of its rows names."""
    named = {row["recipe"] for row in rows()}
    assert named <= set(names())
    files = {name.partition("@")[0] for name in named}
    for name in set(names()) - named:
        group, variant = name.split("/")[0], name.partition("@")[2]
        # where only the variants of a file are rows, the file itself still is a recipe
        assert group == "ours" or (not variant and name in files), name


def test_a_row_s_recipe_is_of_its_document() -> None:
    for row, _ in trained():
        assert DOCUMENTS[row["recipe"].split("/")[0]] == row["document"]


SAID = [
    (r"(\d+) epochs", lambda r: r.epochs, int),
    (r"([\d,]+) iterations", lambda r: r.iterations, lambda text: int(text.replace(",", ""))),
    (r"(?<!ghost )batch (\d+)", lambda r: r.batch_size, int),
    (r"ghost batch (\d+)", lambda r: r.micro_batch, int),
    (r"rate ([\d.]+)", lambda r: r.optimizer.lr, float),
    (r"decay (\S+) (?:not )?on", lambda r: r.optimizer.weight_decay, float),
    (r"(?:^|, )(cosine|multistep)(?:,|$)", lambda r: r.schedule.name, str),
    (r"(?<!Dual-)Cutout (\d+)", lambda r: r.augment.cutout, int),
    (r"Dual-Cutout.*alpha=([\d.]+)", lambda r: r.augment.dual_cutout, float),
    (r"[mM]ixup \(alpha=([\d.]+)", lambda r: r.augment.mixup, float),
    (r"RICAP \(beta=([\d.]+)", lambda r: r.augment.ricap, float),
    (r"(?:epsilon=|, smoothing )([\d.]+)", lambda r: r.label_smoothing, float),
    (r"(SGD|LARS),", lambda r: r.optimizer.name.upper(), str),
    (r"^(FP16),", lambda r: r.precision, lambda text: "half"),
    (r"^(FP32),", lambda r: r.precision, lambda text: "fp32"),
    (r"(float16|mixed)", lambda r: r.precision, lambda text: "fp16"),
    (r"(decay .* not on BN)", lambda r: r.optimizer.decay_all, lambda text: False),
    (r"(decay .* on BN too)", lambda r: r.optimizer.decay_all, lambda text: True),
    (r"(RandomErasing)", lambda r: r.augment.erasing, lambda text: 0.5),
    (r"(RICAP)(?!.*random crop)", lambda r: r.augment.shift, lambda text: 0),
    (r"(RICAP.*w/ random crop)", lambda r: r.augment.shift, lambda text: 4),
    (r"(Cosine annealing)", lambda r: r.schedule.name, lambda text: "cosine"),
    (r"(w/o?) 1st ReLU", lambda r: r.model_args.get("remove_first_relu", False), "w/o".__eq__),
    (r"(w/o?) last BN", lambda r: r.model_args.get("add_last_bn", False), "w/".__eq__),
    (r"(preactivate shortcut)", lambda r: all(r.model_args["preact_stage"]), lambda text: True),
    (r"(widening factor 4)", lambda r: r.model_args["width"], lambda text: 64),
]


@pytest.mark.parametrize(("pattern", "value", "kind"), SAID)
def test_recipes_do_what_their_rows_say(pattern: str, value: Any, kind: Any) -> None:
    """Each figure that stands in a row's name is that of its recipe."""
    hits = [(row, recipe, re.search(pattern, row["row"])) for row, recipe in trained()]
    said = [(row, recipe, match[1]) for row, recipe, match in hits if match]
    assert said
    for row, recipe, text in said:
        assert value(recipe) == kind(text), row


def test_ten_crops_are_those_of_the_rows_that_say_so() -> None:
    for row, recipe in trained():
        assert (recipe.test_crops == 10) == ("10-crop" in row.get("figure", "")), row


def test_variants_are_what_their_names_say() -> None:
    """Batch, rate and epochs of the sweeps."""
    pattern = re.compile(r".*/(?:batch-size|lars)@(\d+)-lr([\d.]+)-(\d+)(-multistep)?")
    found = [(m, recipe) for name, recipe in recipes().items() if (m := pattern.fullmatch(name))]
    assert len(found) > 100
    for match, recipe in found:
        assert (recipe.batch_size, recipe.optimizer.lr) == (int(match[1]), float(match[2]))
        assert (recipe.epochs, recipe.schedule.name == "multistep") == (
            int(match[3]),
            bool(match[4]),
        )


def test_the_small_imagenets_protocol() -> None:
    """48,000 or 128,000 iterations (others at 224 px), a tenth of them warm-up."""
    found = {name: r for name, r in recipes().items() if name.startswith("small-imagenet/")}
    for name, recipe in found.items():
        assert (recipe.eval_every, recipe.schedule.warmup_share) == (1000, 0.1), name
        if "224" not in name:
            assert recipe.iterations == (128_000 if "128k" in name else 48_000), name


# --- recipes -----------------------------------------------------------------------------------


def test_every_file_says_what_it_is_for() -> None:
    """Its head names the document that it is from; ours say that they are ours."""
    for path in RECIPES.glob("*/*.toml"):
        head = about(str(path))
        assert len(head) > 40, path
        assert DOCUMENTS.get(path.parent.name, "ours") in head.lower(), path


def test_names_without_their_groups_are_unique() -> None:
    """`--recipe NAME` does without the group, and so do folders of runs."""
    stems = Counter(path.stem for path in RECIPES.glob("*/*.toml") if path.stem[0] != "_")
    assert [stem for stem, n in stems.items() if n > 1] == []
    labels = Counter(resolve(name).label for name in names())
    assert [label for label, n in labels.items() if n > 1] == []


@cache
def on_meta(model: str, args: str, classes: int, channels: int, size: int) -> torch.nn.Module:
    with torch.device("meta"):
        return models.build(
            model, classes=classes, channels=channels, size=size, **json.loads(args)
        )


def test_every_row_s_network_can_be_built_for_its_input() -> None:
    """Name and arguments are known, and the plane is not too small; no weights are held."""
    for row, recipe in trained():
        spec, splits = catalogue()[row["dataset"]], row.get("splits", 1)
        side = row.get("size") or spec.size_for(splits)
        plane = side // math.isqrt(splits)
        args = json.dumps(recipe.model_args)
        assert on_meta(recipe.model, args, spec.classes, spec.channels, plane)
    for name, recipe in recipes().items():
        if name.startswith("ours/"):
            assert on_meta(recipe.model, json.dumps(recipe.model_args), 10, 3, 32), name


def test_parameters_are_those_of_the_documents() -> None:
    """What tells one width, depth or head from another, through the recipe's own arguments."""

    def millions(name: str, classes: int, size: int) -> float:
        recipe = recipes()[name]
        network = on_meta(recipe.model, json.dumps(recipe.model_args), classes, 3, size)
        return sum(p.numel() for p in network.parameters()) / 1e6

    assert millions("spectral-imagenet/imagenet-vgg16@whole", 1000, 224) == 138.357544
    assert millions("spectral-imagenet/imagenet-vgg16", 1000, 112) == 54.479912
    assert millions("cifar-zoo/preact20x4", 10, 32) == 4.326986
    assert millions("cifar-zoo/fashionmnist@preact20x4-cutout12", 10, 32) == 4.326986
    assert millions("cifar-zoo/pyramidnet-164-270", 10, 32) == 27.216021
    assert millions("cifar-zoo/kmnist@pyramidnet-110-270", 10, 32) == 28.485477
    assert millions("small-imagenet/resnet20x1", 10, 32) == 0.272464


def test_rates_are_finite_and_positive_over_the_run() -> None:
    """From the first step to the last, at which a cosine may have come to 0."""
    for name, recipe in recipes().items():
        per_epoch = math.ceil(50_000 / recipe.batch_size)
        steps = recipe.iterations or recipe.epochs * per_epoch
        rates = [
            lr_at(recipe.schedule, recipe.optimizer.lr, step, steps=steps, per_epoch=per_epoch)
            for step in {0, 1, *range(0, steps, steps // 40), steps - 2}
        ]
        assert all(math.isfinite(rate) and 0 < rate <= recipe.optimizer.lr for rate in rates), name
        last = lr_at(
            recipe.schedule, recipe.optimizer.lr, steps - 1, steps=steps, per_epoch=per_epoch
        )
        assert 0 <= last < recipe.optimizer.lr or recipe.schedule.name == "constant", name


# --- the page and the list ---------------------------------------------------------------------


def test_the_page_is_what_the_rows_say() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert page == generator().page(rows()), "run `python docs/recipes.py`"
    assert page.count("not run here: needs ImageNet") > 20


def test_what_was_measured_stands_on_the_page(tmp_path: Path) -> None:
    row = {**rows()[0], "measured": "12.3 % (1 run)"}
    assert "| 12.3 % (1 run) |" in generator().page([row])
    assert generator().here(rows()[0]) == "not run here: needs ImageNet"
    with pytest.raises(KeyError):
        generator().page([{**row, "document": "004"}])


def listed(*words: str) -> Any:
    done = spectral_here("recipes", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_are_listed_by_words() -> None:
    """All of them, or those whose line holds every word; as JSON the names alone."""
    assert json.loads(listed("--json")) == names()
    some = json.loads(listed("--json", "LARS", "1600"))
    assert some == ["cifar-zoo/lars@4096-lr0.02-1600"]
    lines = listed("lars", "1600").splitlines()
    assert lines[0].split() == [
        "recipe", "network", "lasts", "batch", "optimiser", "rate", "schedule"
    ]  # fmt: skip
    assert lines[1].split() == [
        some[0], "preact-resnet20", "1600", "epochs", "4096", "lars", "0.02", "cosine"
    ]  # fmt: skip
    assert "48,000 steps" in listed("resnet20x1")
    done = spectral_here("recipes", "nothing-like-it")
    assert (done.returncode, done.stdout) == (1, "")
    assert "`spectral recipes` lists them all" in done.stderr


def test_one_recipe_is_shown_with_the_origin_of_each_value() -> None:
    name = "cifar-zoo/batch-size@4096-lr1.6-800"
    found = json.loads(listed("show", name, "--json"))
    assert found["epochs"] == {"value": 800, "origin": name}
    assert found["model"] == {"value": "preact-resnet20", "origin": "cifar-zoo/batch-size"}
    assert found["schedule.name"] == {"value": "cosine", "origin": "cifar-zoo/_cosine"}
    assert found["optimizer.momentum"] == {"value": 0.9, "origin": "cifar-zoo/_base"}
    assert found["seed"] == {"value": 0, "origin": "default"}
    text = listed("show", name)
    assert text.startswith("# Source 002, CIFAR-10, batch size and learning rate")
    assert re.search(rf"^epochs += 800 +{re.escape(name)}$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("show",), 2, "show takes the NAME of one recipe"),
        (("show", "vgg15", "vgg16"), 2, "show takes the NAME of one recipe"),
        (("show", "vgg99"), 1, "no recipe 'vgg99'"),
        (("show", "resnet-128k"), 1, "takes a variant: one of resnet-128k@18x1, "),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(
    words: tuple[str, ...], status: int, said: str
) -> None:
    done = spectral_here("recipes", *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
