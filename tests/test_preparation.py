"""Preparations: defaults, folder names, and what is refused before any work."""

import re

import pytest

from pipeline.catalogue import catalogue
from pipeline.errors import ConfigError
from pipeline.preparation import preparation
from tests.conftest import spectral_here

NAMES = "imagenet1k imagenet21k cifar10 cifar100 mnist fashionmnist kmnist tinyimagenet demo"


def test_the_catalogue_knows_the_data_sets() -> None:
    assert set(catalogue()) == set(NAMES.split())


@pytest.mark.parametrize("name", NAMES.split())
def test_every_data_set_has_a_default_preparation_and_recipe(name: str) -> None:
    from trainer.recipes.cookbook import resolve

    prep = preparation(name, 4)
    assert prep.folder() == "sub4"
    assert resolve(catalogue()[name].recipe).recipe.epochs > 0


@pytest.mark.parametrize(
    ("dataset", "splits", "options", "folder"),
    [
        ("imagenet1k", 36, {}, "sub36"),
        ("imagenet1k", 36, {"transform": "dct"}, "sub36-dct"),
        ("imagenet1k", 16, {"layout": "block", "codec": "raw"}, "sub16-block-raw"),
        ("cifar10", 4, {"size": 64}, "sub4-s64"),
        ("imagenet1k", 1, {"size": 256, "resize": "shortest"}, "sub1-s256-shortest"),
        ("imagenet1k", 1, {"codec": "raw"}, "sub1-raw"),
        ("cifar10", 4, {"step": 8.0, "calib": 0.1, "limit": 500}, "sub4-step8-calib0.1-n500"),
        ("cifar10", 4, {"step": 11.0}, "sub4"),
        ("cifar10", 4, {"transform": "dct", "step": 10.5}, "sub4-dct"),
        ("cifar10", 4, {"channels": 1}, "sub4-c1"),
        ("mine", 4, {"size": 32}, "sub4-s32"),
    ],
)
def test_folders_name_every_option_off_its_default(
    dataset: str, splits: int, options: dict[str, object], folder: str
) -> None:
    assert preparation(dataset, splits, **options).folder() == folder


def test_sizes_are_the_papers() -> None:
    sides = {n: preparation("imagenet1k", n).plane_shape[1] for n in (4, 16, 36)}
    assert sides == {4: 112, 16: 56, 36: 56}


@pytest.mark.parametrize(
    ("splits", "options", "message"),
    [
        (36, {"size": 224}, "224 is not divisible by 6 .* use 222 or 228"),
        (5, {"size": 32}, "--splits 5: a square"),
        (0, {"size": 32}, "--splits 0"),
        (-4, {"size": 32}, "--splits -4"),
        (4, {"size": 0}, "--size 0"),
        (4, {}, "say --size"),
        (4, {"size": 32, "transform": "fft"}, "choose one of dct2, dct, none"),
        (4, {"size": 32, "codec": "jpeg"}, "with --splits 1"),
        (1, {"size": 32, "codec": "zstd"}, "jpeg or raw"),
        (1, {"size": 32, "transform": "dct"}, "nothing with --splits 1"),
        (1, {"size": 32, "step": 3.0}, "nothing with --splits 1"),
        (4, {"size": 32, "step": 0.0}, "--step 0"),
        (4, {"size": 32, "step": 1e300}, "--step 1e.300"),
        (4, {"size": 32, "step": -1.0}, "--step -1"),
        (4, {"size": 32, "step": float("nan")}, "--step nan"),
        (4, {"size": 32, "calib": 1.0}, "--calib 1"),
        (4, {"size": 32, "limit": 0}, "--limit 0"),
        (4, {"size": 32, "channels": 2}, "--channels 2"),
        (4, {"size": 32, "channels": 0}, "--channels 0"),
        (4, {"size": 32, "resize": "shortest"}, "--splits 1 --codec jpeg"),
        (
            1,
            {"size": 2048, "codec": "raw"},
            "12,582,912 bytes of an image, more than the 8,388,608",
        ),
        (4, {"size": 4096}, "12,582,912 bytes of a plane"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(
    splits: int, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        preparation("mine", splits, **options)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--transform", "'dct2', 'dct', 'none'"),
        ("--layout", "'phase', 'block'"),
        ("--codec", "'zstd', 'raw', 'jpeg'"),
        ("--resize", "'squash', 'crop', 'shortest'"),
    ],
)
def test_a_value_that_there_is_not_is_a_usage_error_with_the_list(option: str, values: str) -> None:
    done = spectral_here("prepare", "mine", "--splits", 4, option, "fft")
    assert done.returncode == 2
    assert f"'fft' is not one of {values}" in done.stderr
    assert "|".join(values.replace("'", "").split(", ")) in spectral_here(
        "prepare", "--help"
    ).stdout.replace("\n", "")


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "../up", " x"])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(name))):
        preparation(name, 4, size=32)
