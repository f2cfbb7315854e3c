"""What this machine trains on: its device, number format, threads and free memory."""

import os
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.limits import free_bytes, threads_asked_for, usable_cores

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16, "half": torch.float16}


def pick_device() -> torch.device:
    """The GPU of this process (that of its LOCAL_RANK under torchrun), else the CPU.

    Torch gets its threads too, OMP_NUM_THREADS or one per core: importing FFCV leaves it one.
    """
    torch.set_num_threads(threads_asked_for(os.environ.get("OMP_NUM_THREADS")) or usable_cores())
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What matrix products run in; None: as the weights, float32. `auto`: on a GPU bfloat16
    where it has it, else float16; on a CPU float32.
    """
    if precision != "auto":
        return _PRECISIONS[precision]
    if device.type != "cuda":
        return None
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bf16 else torch.float16


def make_deterministic(wanted: bool) -> None:
    """Kernels that give the same bits each time, or the fastest ones. The CPU's always do."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    if wanted != torch.are_deterministic_algorithms_enabled():  # imports torch's compiler, for 4 s
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted
    torch.backends.cudnn.deterministic = wanted


def sent(values: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device, without waiting: from pinned memory, which torch does not use anew
    before the copy is done.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def seed_torch(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, which takes 0.1 ms, does for the CPU and this device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on the device: its share, where jobs share it."""
    jobs = int(os.environ.get("SPECTRAL_JOBS_PER_DEVICE", "1"))
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // jobs
    jobs *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return free_bytes() // jobs
