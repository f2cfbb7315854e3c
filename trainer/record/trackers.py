"""Sends the curves of a run to where its user looks at curves: TensorBoard, W&B, MLflow, Trackio.

`log.jsonl` has all of them in any case. A run that goes on after an interruption goes on there too:
steps that it does again have the same figures.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import xxhash

from pipeline.errors import ConfigError

PROJECT = "spectral"  # in W&B and Trackio, and the experiment in MLflow


class Tracker(Protocol):
    """Where curves go."""

    def add(self, values: dict[str, float], step: int) -> None:
        """A point of some curves, by their names (train/loss, calib/top1)."""

    def close(self) -> None:
        """Hand over what is still to be written."""


def tracker(name: str, directory: Path, config: dict[str, Any], step: int) -> Tracker:
    """For the run in `directory`, which goes on after `step`. ConfigError: its package is missing,
    or does not accept the run.
    """
    try:
        package = import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError as error:
        raise ConfigError(f"--log-to {name}: {error}; pip install {name}") from error
    try:
        found: Tracker = _KINDS[name](package, directory, config, step)
    except Exception as error:  # of a foreign package: no server, no login, …
        raise ConfigError(f"--log-to {name}: {error}") from error
    return found


def _name(directory: Path) -> str:
    """Data set/preparation/recipe/shard."""
    return "/".join(directory.parts[-4:])


class _TensorBoard:
    def __init__(self, package: Any, directory: Path, config: dict[str, Any], step: int) -> None:
        folder = str(directory / "tensorboard")
        self._writer = package.SummaryWriter(folder, purge_step=step + 1)

    def add(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, package: Any, directory: Path, config: dict[str, Any], step: int) -> None:
        name = _name(directory)
        self._run = package.init(
            project=PROJECT,
            name=name,
            group=name.rpartition("/")[0],
            id=xxhash.xxh3_64_hexdigest(str(directory).encode()),
            resume="allow",
            dir=str(directory),
            config=config,
        )

    def add(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, package: Any, directory: Path, config: dict[str, Any], step: int) -> None:
        name = _name(directory)
        self._run = package.init(project=PROJECT, name=name, config=config, resume="allow")

    def add(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, package: Any, directory: Path, config: dict[str, Any], step: int) -> None:
        self._mlflow, known = package, directory / "mlflow_run_id"
        package.set_experiment(PROJECT)
        earlier = known.read_text() if known.exists() else None
        self._id = package.start_run(run_id=earlier, run_name=_name(directory)).info.run_id
        known.write_text(self._id)
        if earlier is None:
            package.log_dict(config, "spec.json")

    def add(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


_KINDS: dict[str, Any] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}
