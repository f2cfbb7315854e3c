"""The trainer: one spectral shard in, one ordinary network out; and their fusion."""

import os

# torch and the loader's numba each keep a pool of threads as large as the machine. By default
# idle ones spin, and two pools, or two jobs, on the same cores then slow each other down many
# times over (benchmarks/waiting.py). Read when the pools start, so before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
