"""A recipe and a data set in; its network out, with first or with trained weights."""

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.format.manifest import Manifest
from trainer import models
from trainer.data.normalise import Normaliser
from trainer.process.device import autocast_dtype, free_memory
from trainer.recipes.cookbook import resolve
from trainer.recipes.recipe import Recipe
from trainer.record import checkpoint
from trainer.record.rundir import RunDir
from trainer.run.evaluate import Predictor


def build_network(recipe: Recipe, data: Manifest) -> nn.Module:
    """The recipe's network for planes of this data set; weights depend on its seed alone."""
    free = free_memory(torch.device("cpu"))
    with torch.device("meta"):
        size = sum(p.nbytes for p in _build(recipe, data).parameters())
    if size > free:
        raise ConfigError(
            f"network {recipe.model}: its weights alone take {size / 1e9:,.1f} GB, but "
            f"{free / 1e9:,.1f} GB are free"
        )
    torch.manual_seed(recipe.seed)
    return _build(recipe, data)


def _build(recipe: Recipe, data: Manifest) -> nn.Module:
    channels, size, _ = data.preparation.input_shape
    return models.build(
        recipe.model, classes=len(data.classes), channels=channels, size=size, **recipe.model_args
    )


def load_network(run: RunDir, data: Manifest, device: torch.device) -> nn.Module:
    """The network of a run with its best weights, ready to predict."""
    network = build_network(recipe_of(run), data)
    state = checkpoint.load(run.best, torch.device("cpu"))["model"]
    try:
        network.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"{run.best} does not fit its recipe's network: {error}") from error
    return network.to(device).eval()


def load_predictor(run: RunDir, data: Manifest, k: int, device: torch.device) -> Predictor:
    """What answers for planes `k`: a run's best weights, in the precision of its recipe."""
    dtype = autocast_dtype(recipe_of(run).precision, device)
    network = load_network(run, data, device)
    return Predictor(network, Normaliser(data, k).to(device), dtype).eval()


def recipe_of(run: RunDir) -> Recipe:
    """The recipe that a run was started with."""
    return resolve(str(run.path / "recipe.toml")).recipe
