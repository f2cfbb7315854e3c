"""The trainer: one spectral shard in, one ordinary network out; and their fusion."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api import Normalise as Normalise
    from trainer.api import ShardDataset as ShardDataset
    from trainer.fusion.classifier import FusedClassifier as FusedClassifier

# torch and the loader's numba each keep a pool of threads as large as the machine. Idle ones
# spin for milliseconds by default, and two pools, or two jobs, on the same cores then hold
# each other up (benchmarks/waiting.py); those that sleep at once wake too late for small
# networks. Read when the pools start, so set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
__all__ = ["FusedClassifier", "Normalise", "ShardDataset"]


def __getattr__(name: str) -> Any:
    """What is public, when it is asked for: the command line starts without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import torch

    threads = torch.get_num_threads()
    from trainer import api
    from trainer.fusion import classifier

    torch.set_num_threads(threads)  # FFCV leaves it one
    return getattr(classifier if name == "FusedClassifier" else api, name)
