"""GPUs, cores and options in; the places where jobs may run, and their environments, out.

A slot is where one job at a time runs. Slots differ in their GPUs, or share them; a job of
several processes finds what torchrun would have told it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.limits import threads_asked_for

SHARING = "SPECTRAL_JOBS_PER_DEVICE"  # how many jobs share a device's memory


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place for one job. `devices`: its GPUs, as in CUDA_VISIBLE_DEVICES; none on a CPU.
    `sharing`: jobs on the same device. `threads`: for each process of the job.
    """

    devices: tuple[str, ...] = ()
    processes: int = 1
    sharing: int = 1
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user said of parallel work; None where nothing was said."""

    gpus: int | None = None
    jobs_per_gpu: int | None = None
    jobs: int | None = None

    def needs_queue(self, shards: int, environ: Mapping[str, str]) -> bool:
        """Whether `shards` of them take more than this process; ConfigError within torchrun, which
        starts the processes of one job itself.
        """
        if "WORLD_SIZE" in environ:
            self._check_torchrun(shards)
        return shards > 1 or (self.gpus or 1) > 1

    def _check_torchrun(self, shards: int) -> None:
        if shards > 1:
            raise ConfigError(
                f"{shards} runs are asked for, but torchrun trains one shard, once: name one, or "
                "leave torchrun out and say --gpus N"
            )
        if self != Wanted():
            raise ConfigError(
                "torchrun has started the processes already: leave out --gpus, --jobs-per-gpu "
                "and --jobs"
            )


def make_slots(wanted: Wanted, devices: list[str], cores: int, jobs: int) -> list[Slot]:
    """As many places as `jobs` can use. devices: the GPUs there are."""
    return _on_gpus(wanted, devices, cores, jobs) if devices else _on_cpu(wanted, cores, jobs)


def _on_gpus(wanted: Wanted, devices: list[str], cores: int, jobs: int) -> list[Slot]:
    if wanted.jobs is not None:
        raise ConfigError(
            f"--jobs {wanted.jobs} is for machines without a GPU, and here torch sees "
            f"{len(devices)}: say --jobs-per-gpu, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        )
    each = wanted.gpus or 1
    if each > len(devices):
        raise ConfigError(
            f"--gpus {each}: torch sees {len(devices)} here (CUDA_VISIBLE_DEVICES counts); "
            f"say at most --gpus {len(devices)}"
        )
    groups = [tuple(devices[i : i + each]) for i in range(0, len(devices) - each + 1, each)]
    groups = groups[:jobs]
    sharing = min(wanted.jobs_per_gpu or 1, -(-jobs // len(groups)))
    threads = max(1, cores // (len(groups) * sharing * each))
    return [
        Slot(devices=group, processes=each, sharing=sharing, threads=threads)
        for _ in range(sharing)
        for group in groups
    ]


def _on_cpu(wanted: Wanted, cores: int, jobs: int) -> list[Slot]:
    for option, value in (("--gpus", wanted.gpus), ("--jobs-per-gpu", wanted.jobs_per_gpu)):
        if value is not None:
            raise ConfigError(
                f"{option} {value}: torch sees no GPU here (CUDA_VISIBLE_DEVICES counts); leave "
                "it out, or say --jobs N to train several shards at a time on the CPU"
            )
    count = min(wanted.jobs or 1, jobs)
    return [Slot(sharing=count, threads=max(1, cores // count)) for _ in range(count)]


def environments(slot: Slot, base: Mapping[str, str], port: int) -> list[dict[str, str]]:
    """One environment for each process of a job. port: where its processes meet."""
    common = dict(base)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):  # of torch, and of the loader
        asked = threads_asked_for(base.get(name))  # images set it with one job in mind
        common[name] = str(min(asked or slot.threads, slot.threads))
    common[SHARING] = str(slot.sharing)
    if slot.devices:
        common["CUDA_VISIBLE_DEVICES"] = ",".join(slot.devices)
    if slot.processes == 1:
        return [common]
    world = str(slot.processes)
    meeting = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    meeting |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        {**common, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(slot.processes)
    ]


def visible_devices() -> list[str]:
    """The GPUs that torch would use here, by the names that CUDA_VISIBLE_DEVICES gives them."""
    import torch

    return named_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())


def named_devices(listed: str | None, count: int) -> list[str]:
    """listed: CUDA_VISIBLE_DEVICES, where it is set. count: the GPUs that torch sees."""
    if listed is None:
        return [str(index) for index in range(count)]
    names = [name.strip() for name in listed.split(",")]
    # a process sees one MIG slice at most, however many are listed: the count is of no use
    return names if count and names[0].startswith("MIG-") else names[:count]
