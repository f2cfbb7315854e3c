"""Recipes: checked at construction, unknown keys refused with the valid ones."""

import re
import tomllib
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from tests.conftest import ROOT
from trainer.recipes.cookbook import flat, names, resolve


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_resolves_and_survives_its_own_toml(name: str, tmp_path: Path) -> None:
    """By its whole name and without its group."""
    found = resolve(name)
    assert found.label == name.split("/")[1]
    assert resolve(found.label) == found
    path = tmp_path / "copy.toml"
    path.write_text(found.recipe.toml())
    assert resolve(str(path)).recipe == found.recipe


def test_files_extend_each_other_and_have_variants(tmp_path: Path) -> None:
    """Each value is known by its origin; another network does not inherit arguments."""
    (tmp_path / "_base.toml").write_text(
        'model = "resnet18"\nepochs = 5\nbatch_size = 8\n[optimizer]\nlr = 0.3\n'
        "[model_args]\nwidth = 4\n"
    )
    (tmp_path / "mine.toml").write_text(
        'extends = "_base"\nepochs = 7\n[variants.long]\nepochs = 70\noptimizer.lr = 0.1\n'
        '[variants.other]\nmodel = "resnet34"\n'
    )
    (tmp_path / "run@x").mkdir()
    (tmp_path / "run@x" / "recipe.toml").write_text('model = "resnet18"\nepochs=1\nbatch_size=2')
    assert resolve(str(tmp_path / "run@x" / "recipe.toml")).recipe.epochs == 1
    mine = str(tmp_path / "mine.toml")
    plain, long = resolve(mine), resolve(f"{mine}@long", ("batch_size=16",))
    assert (plain.recipe.epochs, plain.recipe.optimizer.lr, plain.label) == (7, 0.3, "mine")
    assert (long.recipe.epochs, long.recipe.optimizer.lr) == (70, 0.1)
    assert long.label == "mine@long+batch_size=16"
    assert long.origins["epochs"].endswith("mine.toml@long")
    assert long.origins["model"].endswith("_base.toml")
    assert long.origins["batch_size"] == "--set"
    assert resolve(f"{mine}@other").recipe.model_args == {}
    with pytest.raises(ConfigError, match="has no variant 'short'; it has long, other"):
        resolve(f"{mine}@short")
    (tmp_path / "_base.toml").write_text('extends = "mine"')
    with pytest.raises(ConfigError, match="extends itself"):
        resolve(mine)


def test_bases_are_files_beside_or_of_the_groups(tmp_path: Path) -> None:
    """What cannot be found is said with the file that asks for it."""
    (tmp_path / "base.toml").write_text('model = "resnet18"\nepochs = 5\nbatch_size = 8\n')
    mine = tmp_path / "mine.toml"
    for base, batch in (("base", 8), ("base.toml", 8), ("cifar-zoo/preact20", 128)):
        mine.write_text(f'extends = "{base}"\n')
        assert resolve(str(mine)).recipe.batch_size == batch
    mine.write_text('extends = "cifar-zoo/_base"\nmodel = "resnet18"')
    assert resolve(str(mine)).recipe.epochs == 160
    for base, said in (("nope", "no such file"), ("lars@x", "a variant cannot be extended")):
        mine.write_text(f'extends = "{base}"')
        with pytest.raises(ConfigError, match=f"mine.toml extends {base}: .*{said}"):
            resolve(str(mine))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar-zoo", "cifar-zoo is a group of recipes: `spectral recipes cifar-zoo` lists them"),
        ("cifar-zoo/vgg16", "near it are .*cifar-zoo/vgg15"),
        ("nothing-like-it", "none ships; `spectral recipes` lists all"),
        ("batch-size@1024-lr0.4", "it has 1024-lr0.4-200 and more, 9. in all"),
    ],
)
def test_a_wrong_name_is_answered_with_those_near_it(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as found:
        resolve(name)
    assert len(str(found.value)) < 400


def test_equal_recipes_have_one_label_that_a_folder_can_have() -> None:
    settings = ("optimizer.lr=4e-3", "epochs=3", "batch_size=64")
    expected = resolve("cifar-resnet20", settings).label
    assert expected == "cifar-resnet20+batch_size=64+epochs=3+optimizer.lr=0.004"
    usual = resolve("cifar-resnet20").recipe
    again = ("epochs=9", *settings[::-1], "optimizer.lr=0.004", f"seed={usual.seed}")
    assert resolve("cifar-resnet20", again).label == expected
    assert resolve("cifar-resnet20", (f"epochs={usual.epochs}",)).label == "cifar-resnet20"
    many = tuple(f"augment.{key}=0.25" for key in ("mixup", "cutmix", "erasing"))
    many += tuple(f"optimizer.{key}=0.5" for key in ("lr", "momentum", "weight_decay", "clip_norm"))
    label, other = resolve("air", many).label, resolve("air", (*many, "seed=3")).label
    assert len(label) == len(other) == 120
    assert label != other


def test_settings_change_values_and_the_label() -> None:
    found = resolve(
        "cifar-resnet20", ("epochs=3", "optimizer.lr=1", "model_args.width=8", "optimizer.name=sgd")
    )
    recipe, label = found.recipe, found.label
    assert (recipe.epochs, recipe.optimizer.lr, recipe.model_args) == (3, 1.0, {"width": 8})
    assert label == "cifar-resnet20+epochs=3+model_args.width=8+optimizer.lr=1.0"


def test_settings_replace_what_excludes_them() -> None:
    """A run lasts epochs or iterations; arguments belong to their network."""
    short = resolve("cifar-resnet20", ("iterations=7",)).recipe
    assert (short.epochs, short.iterations) == (0, 7)
    long = resolve("resnet20x1", ("epochs=7",)).recipe
    assert (long.epochs, long.iterations) == (7, 0)
    assert resolve("preact20x4").recipe.model_args
    other = resolve("preact20x4", ("model_args.width=9", "model=cifar-resnet8")).recipe
    assert other.model_args == {"width": 9}
    assert resolve("preact20x4", ("model=cnn",)).recipe.model_args == {}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epoch=3", "unknown key epoch; valid are model, batch_size, epochs"),
        ("optimizer.rate=3", "unknown key optimizer.rate; valid are optimizer.name"),
        ("optimizer=3", "optimizer is a table"),
        ("epochs.x=3", "epochs is no table"),
        ("epochs=three", "must be of type int"),
        ("epochs=2.5", "must be of type int"),
        ("epochs=true", "must be of type int"),
        ("epochs=0", "epochs = 0: must be at least 1"),
        ("iterations=5 epochs=5", "epochs = 5 and iterations = 5: must be one of the two"),
        ("augment.dual_cutout=0.1", "0 without cutout"),
        ("augment.policy=autoaugment", "one of none, randaugment, trivialaugment"),
        ("augment.policy_magnitude=31", "0 to 30"),
        ("augment.policy_operations=0", "1 to 10"),
        ("batch_size=0", "batch_size = 0: must be at least 2"),
        ("precision=half optimizer.name=adam", "precision = half: must be another"),
        ("schedule.name=onecycle", "schedule.warmup_epochs = 1.0: must be 0 with onecycle"),
        ("schedule.name=multistep schedule.milestones=[5,3]", "epochs above 0, each later"),
        ("schedule.name=multistep schedule.milestones=[-1]", "epochs above 0, each later"),
        ("schedule.final_lr=1", r"final_lr = 1.0: must be at most optimizer.lr, 0.1"),
        ("repeats=0", "1 to batch_size"),
        ("batch_size=1", "at least 2"),
        ("test_crops=5", "1 or 10"),
        ("optimizer.lr=0", "must be positive"),
        ("optimizer.name=lion", "one of sgd, adam, adamw, lars, lamb"),
        ("optimizer.momentum=0", "false without momentum"),
        ("label_smoothing=1", r"in \[0, 1\)"),
        ("augment.shift=-1", "0 to 1024 px"),
        ("optimizer.lr=inf", "must be finite"),
        ("schedule.warmup_epochs=-1", "at least 0"),
        ("epochs", "key=value"),
        ("=3", "key=value"),
    ],
)
def test_wrong_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("cifar-resnet20", tuple(setting.split()))


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("model = ")
    (tmp_path / "short.toml").write_text('model = "resnet18"')
    with pytest.raises(ConfigError, match="no valid TOML"):
        resolve(str(tmp_path / "broken.toml"))
    with pytest.raises(ConfigError, match="lacks batch_size"):
        resolve(str(tmp_path / "short.toml"))
    with pytest.raises(
        ConfigError, match=r"no such file, and none ships; near it are .*cifar-resnet20"
    ):
        resolve("cifar-resnet21")


def test_the_page_on_training_explains_every_value() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    for key, _ in flat(tomllib.loads(resolve("digits").recipe.toml())):
        if not key.startswith("model_args."):
            last = key.rpartition(".")[2]
            assert re.search(rf"`(\w*\.)?{last}`", page), key


def test_the_resolved_recipe_holds_every_value() -> None:
    values = tomllib.loads(resolve("digits").recipe.toml())
    assert set(values) == {
        "model", "epochs", "batch_size", "seed", "label_smoothing", "micro_batch", "precision",
        "ema", "sync_bn", "test_flip", "test_shift", "test_crops", "iterations", "eval_every",
        "repeats", "loss", "model_args", "optimizer", "schedule", "augment",
    }  # fmt: skip
