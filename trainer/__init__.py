"""The trainer: one spectral shard in, one ordinary network out; and their fusion."""

import os

# torch and the loader's numba each keep a pool of threads as large as the machine. Idle ones
# spin for milliseconds by default, and two pools, or two jobs, on the same cores then hold
# each other up (benchmarks/waiting.py); those that sleep at once wake too late for small
# networks. Read when the pools start, so set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> object:
    """What notebooks import from here; loaded when it is asked for, as torch takes seconds."""
    if name == "FusedClassifier":
        from trainer.fusion.classifier import FusedClassifier

        return FusedClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
