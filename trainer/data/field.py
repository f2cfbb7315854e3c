"""The FFCV field of zstd planes, and its decoder: for the stock `ffcv.loader.Loader`.

    Loader(path, …, custom_fields={"image": PlaneField})

yields (B, channels, h, w) int8 for "image". See docs/format.md.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, cast

import numba
import numpy as np
from numba import types

from pipeline.format.beton import PLANE, PLANE_ARGUMENTS
from pipeline.format.zstd import library
from pipeline.jit import external, parallel_kernel
from trainer.data.stock import ARG_TYPE, AllocationQuery, Field, IntDecoder, Operation, State

OK, CORRUPT, WRONG_SIZE = 0, 1, 2

_zstd = library()
_create: Any = external("spectral_ZSTD_createDCtx", _zstd.ZSTD_createDCtx, types.uintp())
_free: Any = external("spectral_ZSTD_freeDCtx", _zstd.ZSTD_freeDCtx, types.uintp(types.uintp))
_decompress: Any = external(
    "spectral_ZSTD_decompressDCtx", _zstd.ZSTD_decompressDCtx, types.uintp(*[types.uintp] * 5)
)
CHUNK = 8  # frames a thread takes at a time: frames differ, and one thread wakes late


@parallel_kernel
def decode_batch(
    indices: Any, planes: Any, status: Any, metadata: Any, file: Any, threads: int
) -> None:
    """One context for each of numba's threads; CHUNK frames at a time, as the caller has to say:
    how numba's own functions for both are called cannot be kept on disk.
    """
    contexts = np.empty(threads, np.uint64)
    for thread in range(threads):
        contexts[thread] = _create()
    wanted = np.uint64(planes[0].size)
    for i in numba.prange(len(indices)):
        row = metadata[indices[i]]
        frame = file[row["ptr"] : row["ptr"] + np.uint64(row["size"])]
        context = contexts[numba.get_thread_id()]  # type: ignore[attr-defined]
        size = np.uint64(
            _decompress(context, planes[i].ctypes.data, wanted, frame.ctypes.data, frame.size)
        )
        if size == wanted:
            status[i] = OK
        elif size > wanted or frame.size == 0:
            status[i] = CORRUPT  # libzstd's error codes are the largest values of a size_t
        else:
            status[i] = WRONG_SIZE
    for thread in range(threads):
        _free(contexts[thread])


class PlaneDecoder(Operation):  # type: ignore[misc]
    """Decodes zstd frames. Each sample's status lies beside it in the batch's memory,
    (B,) int32: `OK`, `CORRUPT` or `WRONG_SIZE`; whoever iterates has to look at it.
    """

    status_text: ClassVar = {
        CORRUPT: "its zstd frame is damaged",
        WRONG_SIZE: "its zstd frame holds a plane of another size",
    }

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        """Shape and memory of a batch, for FFCV's graph."""
        shape, dtype = self.field.shape, np.dtype(np.int8)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        queries = (AllocationQuery(shape, dtype), AllocationQuery((), np.dtype(np.int32)))
        return state, queries

    def generate_code(self) -> Callable[..., Any]:
        """A stock Loader compiles the returned function anew each time, so it only calls."""

        def decode(indices: Any, memory: Any, metadata: Any, storage_state: Any) -> Any:
            planes, status = memory
            with numba.parallel_chunksize(CHUNK):
                decode_batch(
                    indices, planes, status, metadata, storage_state[0], numba.get_num_threads()
                )
            return planes[: len(indices)]

        return decode


class LabelDecoder(IntDecoder):  # type: ignore[misc]
    """Labels, (B, 1) int64, quickly without being compiled too."""

    def generate_code(self) -> Callable[..., Any]:
        """Where FFCV's own goes from sample to sample."""

        def decode(indices: Any, labels: Any, metadata: Any, storage_state: Any) -> Any:
            labels[: len(indices), 0] = metadata[indices]
            return labels[: len(indices)]

        return decode


class PlaneField(Field):  # type: ignore[misc]
    """A plane of (channels, height, width) int8, stored as one zstd frame."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    @property
    def metadata_type(self) -> np.dtype[Any]:
        """(ptr u8, size u4) of the frame."""
        return PLANE

    @staticmethod
    def from_binary(binary: Any) -> "PlaneField":
        """From the arguments in the file's header."""
        raw = np.asarray(binary).view(np.uint8).tobytes()
        channels, height, width = np.frombuffer(raw, PLANE_ARGUMENTS, 1)[0]
        return PlaneField((int(channels), int(height), int(width)))

    def to_binary(self) -> Any:
        """To the arguments in the file's header."""
        arguments = np.array([self.shape], PLANE_ARGUMENTS).view(np.uint8)
        result = np.zeros(1, ARG_TYPE)[0]
        result[0][: len(arguments)] = arguments
        return result

    def encode(self, destination: Any, field: Any, malloc: Any) -> None:
        """Not with FFCV's writer: shards are written by `spectral prepare`."""
        raise NotImplementedError("shards are written by `spectral prepare`")

    def get_decoder_class(self) -> type[Operation]:
        """The decoder that a Loader uses when none is named."""
        return cast(type[Operation], PlaneDecoder)
