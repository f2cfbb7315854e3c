"""NVIDIA's Multi-Process Service, with which small jobs really run at once on a GPU.

Without it, processes that share a GPU take turns: only one's kernels run at a time, and a small
network leaves most of the GPU idle in its turn. https://docs.nvidia.com/deploy/mps
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)
CONTROL = "nvidia-cuda-mps-control"
_PIPE, _LOG = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_SECONDS = 60.0  # for the daemon, or its first client, to answer
# What a job does first, without the seconds that importing torch takes
_CLIENT = """
import ctypes
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0, "cuInit"
assert cuda.cuDeviceGet(ctypes.byref(device), 0) == 0, "cuDeviceGet"
status = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
assert status == 0, f"cuDevicePrimaryCtxRetain: {status}"
"""


@contextmanager
def shared_gpus(
    environ: Mapping[str, str] = os.environ, client: str = _CLIENT
) -> Iterator[dict[str, str]]:
    """What jobs need in their environment for their kernels to run at once, while the block lasts.

    Nothing where the service's program is not there, does not start, or serves no client, which is
    said; nor where a service that somebody else runs is in the environment already. client: a
    Python program that fails where a job would.
    """
    if _PIPE in environ:
        yield {}
        return
    if shutil.which(CONTROL, path=environ.get("PATH")) is None:
        log.warning("jobs that share a GPU take turns: %s is not on this machine's PATH", CONTROL)
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="spectral-mps-") as folder:
        own = {_PIPE: str(Path(folder) / "pipe"), _LOG: str(Path(folder) / "log")}
        for path in own.values():
            Path(path).mkdir()
        problem = _problem({**environ, **own}, client)
        if problem:
            log.warning("jobs that share a GPU take turns: %s: %s", CONTROL, problem)
        try:
            yield {} if problem else own
        finally:
            _control({**environ, **own}, "quit")


def _problem(environ: Mapping[str, str], client: str) -> str:
    """Why a daemon of our own is of no use; nothing if it is."""
    for command in ([CONTROL, "-d"], [sys.executable, "-c", client]):
        try:
            done = subprocess.run(
                command, env=dict(environ), capture_output=True, text=True,
                timeout=_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            return said[-1] if said else f"status {done.returncode}"
    return ""


def _control(environ: Mapping[str, str], command: str) -> None:
    """Tell the daemon something, if it lives."""
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [CONTROL], input=f"{command}\n", env=dict(environ), capture_output=True, text=True,
            timeout=_SECONDS, check=False,
        )  # fmt: skip
