"""Reads batches of a shard from disk to the device, through FFCV's Loader with its traps closed.

The order is the caller's; no sample is dropped; a damaged sample or a dead loader thread
raises instead of blocking; threads end with the epoch.
"""

import queue
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DamagedError
from pipeline.format.beton import BetonReader
from pipeline.limits import usable_cores
from trainer.data.crops import CentreDecoder, FiveCropDecoder, RandomCropDecoder
from trainer.data.field import OK, LabelDecoder, PlaneDecoder, PlaneField
from trainer.data.selection import Prepared
from trainer.data.stock import (
    Compiler,
    Loader,
    NDArrayDecoder,
    OrderOption,
    ToDevice,
    ToTensor,
    TraversalOrder,
)

_POLL = 0.5  # seconds between looks at whether the loader's thread lives


# (values, labels): (B, C, h, w) int8, of five crops (B, 5, C, h, w), centred on 0 (of stored
# uint8, raw or JPEG, 128 is taken off), and (B,) int64, on the device, valid until the next batch
# is asked for
Batch = tuple[Tensor, Tensor]
Batches = Generator[Batch, None, None]  # to be used up or closed


class _Given(TraversalOrder):  # type: ignore[misc]
    """The order that the pass at hand was given."""

    order: NDArray[np.int64]

    def sample_order(self, epoch: int) -> NDArray[np.int64]:
        return self.order


class ShardLoader:
    """One split of one shard, read from the page cache or disk as it is needed.

    Of images that kept their aspect (`--resize shortest`) the centre is seen; `random_crops`: a
    random part; `five_crops`: the corners and the centre.
    """

    kind = "stream"

    def __init__(
        self,
        data: Prepared,
        split: str,
        k: int,
        *,
        batch_size: int,
        device: torch.device,
        random_crops: bool = False,
        five_crops: bool = False,
        threads: int = 0,
    ) -> None:
        self.path = data.shard_path(split, k)
        self.prep = data.manifest.preparation
        self.shape = self.prep.input_shape
        self.samples = check_samples(self.path, data.manifest.written(split))
        self.batch_size = max(min(batch_size, self.samples), 1)
        self.device = device
        self._decoder = self._image_decoder(random_crops, five_crops)
        with _own_threads(), _as_they_are(self._decoder):
            self._loader = Loader(
                str(self.path),
                batch_size=self.batch_size,
                num_workers=threads or _threads(),
                os_cache=True,  # a zstd shard has no table that the process cache could use
                order=OrderOption.SEQUENTIAL,
                drop_last=False,
                pipelines={
                    "image": [self._decoder, ToTensor(), *self._to_device()],
                    "label": [LabelDecoder(), ToTensor(), *self._to_device()],
                },
                custom_fields={"image": PlaneField} if self.prep.codec == "zstd" else {},
            )
        self._order = _Given(self._loader)
        self._loader.traversal_order = self._order

    def draw(self, seed: int, epoch: int, positions: NDArray[np.int64]) -> None:
        """Which random crops follow in the next pass, of a loader that makes them; `positions` in
        the epoch of the samples of its order.
        """
        if isinstance(self._decoder, RandomCropDecoder):
            self._decoder.draw(seed, epoch, positions)

    def batches(self, order: NDArray[np.int64]) -> Batches:
        """The samples of `order`, in batches; the last one may be partial. Close the iterator,
        or use it up, before the next one. FFCV ends a pass after as many as the shard has: no order
        is longer.
        """
        assert len(order) <= self.samples, f"{len(order)} of {self.samples} samples"
        if not len(order):
            return
        self._order.order = order
        with _iterating(self._loader) as iterator:
            start = 0
            while (slot := self._next_slot(iterator)) is not None:
                values, labels = next(iterator)
                self._check(iterator, slot, order[start : start + len(labels)])
                start += len(labels)
                yield self._centred(values), labels[:, 0]

    def _image_decoder(self, random_crops: bool, five_crops: bool) -> Any:
        prep = self.prep
        if prep.codec == "zstd":
            return PlaneDecoder()
        if prep.channels == 1 and prep.codec == "raw":
            return NDArrayDecoder()
        _, height, width = prep.input_shape
        if five_crops:
            return FiveCropDecoder((height, width))
        return (RandomCropDecoder if random_crops else CentreDecoder)((height, width))

    def _to_device(self) -> list[Any]:
        """Copies that block FFCV's own thread: it decodes into the same pinned buffers again
        without looking whether an asynchronous copy from them is still pending.
        """
        cuda = self.device.type == "cuda"
        return [ToDevice(self.device, non_blocking=False)] if cuda else []

    def _next_slot(self, iterator: Any) -> int | None:
        """Wait for a batch: its slot in the loader's memory; None after the last one.

        FFCV would wait for ever when its thread has died.
        """
        done = iterator.output_queue
        while True:
            with done.not_empty:
                if done.queue or done.not_empty.wait(_POLL):
                    head = done.queue[0]
                    return None if head is None else int(head[0])
            if not iterator.is_alive() and not done.queue:
                raise DamagedError(
                    f"{self.path}: the loader's thread ended with an error (above); "
                    "run `spectral verify` on the data"
                )

    def _check(self, iterator: Any, slot: int, indices: NDArray[np.int64]) -> None:
        """Raise for a sample of this batch that did not decode."""
        if isinstance(self._decoder, NDArrayDecoder):  # FFCV's own keeps no status
            return
        (node,) = (
            n for n in self._loader.graph.nodes if getattr(n, "decoder", None) is self._decoder
        )
        status = iterator.memory_allocations["operation"][node.id][1][slot][: len(indices)]
        for position in np.flatnonzero(status != OK)[:1].tolist():
            reason = self._decoder.status_text[int(status[position])]
            raise DamagedError(
                f"{self.path}: sample {indices[position]} cannot be read: {reason}; "
                "run `spectral verify`, then copy or prepare the file again"
            )

    def _centred(self, values: Tensor) -> Tensor:
        if self.prep.codec == "zstd":
            return values
        channels_first = values.movedim(-1, -3)[..., : self.prep.channels, :, :]
        return (channels_first ^ 128).view(torch.int8)


def _threads() -> int:
    """Numba's own number knows nothing of a container's quota."""
    most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    return min(most, usable_cores())


def check_samples(path: Path, expected: int, classes: int | None = None) -> int:
    """Samples of a shard whose tables are whole and agree with the manifest; with `classes` each
    label and pointer is looked at.
    """
    with BetonReader(path) as reader:
        samples = reader.samples
        if classes is not None:
            reader.check(classes)
    if samples != expected:
        raise DamagedError(
            f"{path} holds {samples} samples, the manifest says {expected}: run `spectral verify`"
        )
    return samples


@contextmanager
def _iterating(loader: Any) -> Iterator[Any]:
    """FFCV's iterator is a thread: it ends here, not when the garbage collector likes."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # FFCV's first copies, on streams of its own, wait for nothing; the device memory it is
        # given may be some that kernels launched earlier have yet to finish with.
        torch.cuda.current_stream().synchronize()
    # FFCV's thread writes into what is allocated here: not possible for tensors of inference mode
    with _own_threads(), torch.inference_mode(False), _left_unfilled():
        iterator = iter(loader)
    try:
        yield iterator
    finally:
        with _own_threads():
            iterator.close()
            while iterator.is_alive():  # it may wait to hand over a batch, or its end, for ever
                with suppress(queue.Empty):
                    iterator.output_queue.get_nowait()
                iterator.join(0.01)


@contextmanager
def _left_unfilled() -> Iterator[None]:
    """Torch's deterministic mode fills new memory, on a GPU by a kernel of the current stream, for
    which FFCV's first copies do not wait: it would overwrite their samples.
    """
    mode: Any = torch.utils.deterministic  # whose property its types do not know
    asked = mode.fill_uninitialized_memory
    mode.fill_uninitialized_memory = False
    try:
        yield
    finally:
        mode.fill_uninitialized_memory = asked


@contextmanager
def _as_they_are(decoder: Any) -> Iterator[None]:
    """FFCV would compile decoders anew for every Loader, for a second or two of CPU: ours only
    call what is compiled once a process.
    """
    Compiler.set_enabled(isinstance(decoder, NDArrayDecoder))
    try:
        yield
    finally:
        Compiler.set_enabled(True)


@contextmanager
def _own_threads() -> Iterator[None]:
    """Give torch back its number of threads, which FFCV sets for all of the process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
