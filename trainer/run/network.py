"""Builds the network of a recipe for a data set, with first or with trained weights."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.format.manifest import Manifest
from trainer import models
from trainer.data.feed import Loader
from trainer.data.normalise import Normaliser
from trainer.methods.views import Views
from trainer.models import others
from trainer.models.air import WhiteningStem
from trainer.models.meta import on_meta
from trainer.models.probe import probe
from trainer.process.device import autocast_dtype, free_memory
from trainer.recipes.cookbook import resolve
from trainer.recipes.recipe import Recipe
from trainer.record.rundir import RunDir
from trainer.record.weights import load_weights
from trainer.run.evaluate import Predictor
from trainer.run.spec import NAME, RunSpec

_STEM_IMAGES, _STEM_VALUES = 5000, 2**26  # at most; Jordan 2024 takes 5,000 of CIFAR-10


def build_network(
    recipe: Recipe, data: Manifest, planes: int = 1, code: Path | None = None
) -> nn.Module:
    """The recipe's network for so many planes of this data set, stacked as channels; weights
    depend on its seed alone. `code`: the folder of the user's own network's module.
    """
    check_network(recipe, data, planes, code)
    torch.manual_seed(recipe.seed)
    return _builder(recipe, data, planes, code)()


def check_network(recipe: Recipe, data: Manifest, planes: int, code: Path | None) -> None:
    """Refuse a network that cannot be, or takes no planes of this size."""
    build = _builder(recipe, data, planes, code)
    if others.is_other(recipe.model):
        channels, height, width = data.preparation.input_shape
        size = probe(recipe.model, build, (planes * channels, height, width), len(data.classes))
    else:  # checks its sizes itself
        with on_meta():
            size = sum(p.nbytes for p in build().parameters())
    free = free_memory(torch.device("cpu"))
    if size > free:
        raise ConfigError(
            f"network {recipe.model}: its weights alone take {size / 1e9:,.1f} GB, but "
            f"{free / 1e9:,.1f} GB are free"
        )


def network_on_meta(run: RunDir, data: Manifest, planes: int) -> nn.Module:
    """The network of a run without memory for its weights, to be counted."""
    with on_meta():
        return _builder(recipe_of(run), data, planes, code_of(run))()


def _builder(
    recipe: Recipe, data: Manifest, planes: int, code: Path | None
) -> Callable[[], nn.Module]:
    channels, size, _ = data.preparation.input_shape
    given = {"classes": len(data.classes), "channels": planes * channels, "size": size}
    if said := [key for key in recipe.model_args if key in given]:
        raise ConfigError(f"recipe: model_args.{said[0]} cannot be said: the data decides it")
    return partial(models.build, recipe.model, code, **given, **recipe.model_args)


def load_network(run: RunDir, data: Manifest, device: torch.device, planes: int = 1) -> nn.Module:
    """The network of a run with its best weights, ready to predict."""
    recipe, code = recipe_of(run), code_of(run)
    network = build_network(recipe, data, planes, code)
    run.check_source(others.source(recipe.model, code))
    try:
        network.load_state_dict(load_weights(run.best).tensors)
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"{run.best} does not fit its recipe's network: {error}") from error
    return network.to(device).eval()


def load_predictor(
    run: RunDir,
    data: Manifest,
    planes: tuple[int, ...],
    device: torch.device,
    *,
    flip: bool = False,
) -> Predictor:
    """What answers for these planes: a run's best weights, in the precision of its recipe. flip:
    of the mirror image too, where that is exact, whatever the recipe says.
    """
    recipe = recipe_of(run)
    recipe = mirrored(recipe) if flip else recipe
    network = load_network(run, data, device, len(planes))
    return make_predictor(network, recipe, data, planes, device)


def mirrored(recipe: Recipe) -> Recipe:
    """The same, but networks see mirror images too; they are among the ten crops in any case."""
    return replace(recipe, test_flip=True) if recipe.test_crops == 1 else recipe


def make_predictor(
    network: nn.Module,
    recipe: Recipe,
    data: Manifest,
    planes: tuple[int, ...],
    device: torch.device,
) -> Predictor:
    """A network with what stands before it, and the views that its recipe asks for."""
    normaliser = Normaliser(data, planes).to(device)
    dtype = autocast_dtype(recipe.precision, device)
    views = None
    if recipe.test_flip or recipe.test_shift:
        views = Views(recipe, data.preparation, planes).to(device)
    return Predictor(network, normaliser, dtype, views).eval()


@torch.no_grad()
def fit_stem(network: nn.Module, normaliser: Normaliser, loader: Loader) -> None:
    """Fit a whitening stem, if the network has one, to the first images of a split."""
    stem = getattr(network, "stem", None)
    if not isinstance(stem, WhiteningStem):
        return
    values = 4 * math.prod(loader.shape)  # of the patches of an image, four times its own
    wanted = max(1, min(loader.samples, _STEM_IMAGES, _STEM_VALUES // values))
    images = [batch.flatten(1, -3).clone() for batch, _ in loader.batches(np.arange(wanted))]
    stem.fit(normaliser(torch.cat(images)))


def code_of(run: RunDir) -> Path | None:
    """The folder of the module of a run's network, if that is of the user's own."""
    spec = run.path / NAME
    return RunSpec.load(spec).code if spec.exists() else None


def recipe_of(run: RunDir) -> Recipe:
    """The recipe that a run was started with."""
    return resolve(str(run.path / "recipe.toml")).recipe
