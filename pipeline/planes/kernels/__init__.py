"""numba kernels, one module each; `jit` owns their compiler options."""
