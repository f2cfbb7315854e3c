"""One chunk in, its payloads appended to the shards of their splits."""

import resource
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import sync_directory
from pipeline.format.beton import image_field
from pipeline.format.beton_writer import BetonWriter, Mark, Written
from pipeline.format.manifest import shard_name
from pipeline.preparation import Preparation
from pipeline.sources.index import SPLITS
from pipeline.stage.messages import Chunk
from pipeline.stage.tasks import Batch

FINISHING_THREADS = 8  # hashing and writing leave Python's lock


class Shards:
    """The files of all splits and planes, open to be written."""

    def __init__(
        self,
        directory: Path,
        prep: Preparation,
        counts: dict[str, int],
        marks: dict[str, Mark],
        each_plane: Callable[..., Iterable[Any]] = map,
    ) -> None:
        """counts: rows by split. marks: where to go on, by shard; empty at the start. each_plane:
        `map`, or that of a pool of threads.
        """
        self.directory, self._planes, self._map = directory, prep.splits, each_plane
        self._splits = [split for split in SPLITS if counts[split]]
        _allow_open_files(2 * prep.splits * len(self._splits) + 256)
        self._writers: dict[str, BetonWriter] = {}
        field = image_field(prep)
        try:
            for split in self._splits:
                (directory / split).mkdir(exist_ok=True)
                for k in range(prep.splits):
                    name = shard_name(split, k)
                    path, mark = directory / name, marks.get(name)
                    self._writers[name] = BetonWriter(path, field, counts[split], mark)
                sync_directory(directory / split)
        except BaseException:
            self.close()
            raise
        sync_directory(directory)

    def append(self, chunk: Chunk, batch: Batch, payload: memoryview) -> None:
        """payload: what the chunk's sizes are of, unless it holds it itself."""
        stored = np.array([reason is None for reason in chunk.reasons])
        payload = memoryview(chunk.inline) if chunk.inline is not None else payload
        labels = batch.labels[stored]
        ends = np.searchsorted(batch.splits[stored], range(len(SPLITS) + 1)).tolist()
        row = len(payload) // self._planes

        def append(k: int) -> None:
            at, sizes = k * row, chunk.sizes[k]
            for split, (first, end) in zip(SPLITS, pairwise(ends), strict=True):
                if first < end:
                    size = int(sizes[first:end].sum())
                    self._writers[shard_name(split, k)].append(
                        payload[at : at + size],
                        sizes[first:end],
                        labels[first:end],
                        chunk.stored_shapes[first:end],
                    )
                    at += size

        list(self._map(append, range(self._planes)))

    def marks(self) -> dict[str, Mark]:
        """How far each shard is."""
        return {name: writer.mark() for name, writer in self._writers.items()}

    def sync(self) -> None:
        """Until all that was marked is on the disk."""
        for writer in self._writers.values():
            writer.sync()

    def finish(self) -> dict[str, Written]:
        """All shards are whole, under their partial names."""
        with mapping(FINISHING_THREADS) as each:
            written = list(each(BetonWriter.finish, self._writers.values()))
        return dict(zip(self._writers, written, strict=True))

    def close(self) -> None:
        """Let go of the files."""
        for writer in self._writers.values():
            writer.close()


@contextmanager
def mapping(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` that uses so many threads; with less than two, none."""
    if threads < 2:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


def _allow_open_files(wanted: int) -> None:
    """Raise the soft limit where that is needed and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
