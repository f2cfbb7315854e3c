"""An index in, tasks for the workers out, with the bytes that only the parent can read."""

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.preparation import Preparation
from pipeline.progress import Watch
from pipeline.sources.index import Index, Place
from pipeline.sources.reading import Feeder
from pipeline.stage.messages import Task

CHUNK_BYTES = 64 << 20  # of pixels that one task decodes
CHUNK_IMAGES = 256
PROBED = 64
PSNR_IMAGES = 200  # about so many, spread over the index, measure the quality
_JOIN_SECONDS = 1.0  # a read from a disk that is gone may never return
_AHEAD = 4  # tasks that are read before a worker asks for them


@dataclass(frozen=True)
class Batch:
    """The rows of an index that a task works on. order: row (from 0) of each of its samples,
    those of train first; splits and labels: in that order.
    """

    rows: pa.RecordBatch
    order: NDArray[np.int64]
    splits: NDArray[np.int8]
    labels: NDArray[np.int32]


Work = tuple[Task, Batch]


def chunk_images(prep: Preparation, rows: int, workers: int) -> int:
    """Images of a task: few where there are few, so that every worker has some."""
    fitting = CHUNK_BYTES // (prep.size * prep.size * prep.channels)
    return max(1, min(CHUNK_IMAGES, fitting, -(-rows // (4 * workers))))


def slot_bytes(prep: Preparation, images: int) -> int:
    """Room for the payloads of a task: pixels, what a codec may add, and for `shortest`
    twice as much; a task that needs more travels through the pipe.
    """
    pixels = prep.size * prep.size * prep.channels * images
    overhead = 1024 * images * prep.splits
    return (2 if prep.resize == "shortest" else 1) * (pixels + pixels // 128) + overhead


class Feed:
    """What workers cannot read themselves, in the order of the index.

    folder: where the scan of the index left what a reader needs. watch: is told of each read.
    """

    def __init__(self, index: Index, folder: Path, watch: Watch) -> None:
        self._feeder = Feeder(index.root, index.summary.containers, folder)
        self.needed = self._feeder.needed
        self._watch = watch

    def read(self, place: Place) -> bytes | None:
        """The bytes of an image; None where a worker reads it."""
        if not self._feeder.feeds(place):
            return None
        feeder = self._feeder
        self._watch.begin(f"reading {feeder.root / feeder.containers[place.file].path}")
        data = feeder.read(place)
        self._watch.begin("")
        return data


def tasks(
    index: Index, prep: Preparation, feed: Feed, start: int, size: int, end: int | None = None
) -> Generator[Work, None, None]:
    """Tasks of up to `size` rows from row `start` on, and before `end`, numbered from 0. What
    workers cannot read themselves is read here, ahead, in a thread.
    """
    work = _tasks(index, prep, feed, start, size, end)
    return _ahead(work) if feed.needed else work


def _tasks(
    index: Index, prep: Preparation, feed: Feed, start: int, size: int, end: int | None = None
) -> Generator[Work, None, None]:
    every = max(1, index.summary.rows // PSNR_IMAGES)
    number, row = 0, start
    room = slot_bytes(prep, size) // 2  # of files that are read here; one more mostly fits, too
    for whole in index.batches(start):
        batch, at = whole if end is None else whole.slice(0, max(0, end - row)), 0
        while at < len(batch):
            places, data = _read(batch.slice(at, size), feed, room)
            chosen = _batch(batch.slice(at, len(places)))
            measured = ((row + chosen.order) % every == 0).tolist()
            yield _task(number, chosen, measured, places, data), chosen
            number, row, at = number + 1, row + len(places), at + len(places)


def probe(index: Index, prep: Preparation, feed: Feed, start: int) -> Work:
    """A task to reckon sizes from: images of many places, or where reading far ahead is dear
    the next ones.
    """
    nearest = feed.needed
    rows = next(index.batches(start)).slice(0, PROBED) if nearest else index.spread(PROBED)
    places, data = _read(rows, feed, slot_bytes(prep, PROBED) // 2)
    batch = _batch(rows.slice(0, len(places)))
    return _task(0, batch, [False] * len(places), places, data), batch


def _batch(rows: pa.RecordBatch) -> Batch:
    splits = rows["split"].to_numpy()
    order = np.argsort(splits, kind="stable")
    return Batch(rows, order, splits[order], rows["label"].to_numpy()[order])


def _read(rows: pa.RecordBatch, feed: Feed, room: int) -> tuple[list[Place], list[bytes | None]]:
    """Places of the rows, and what the parent has to read of them: so many of the first ones that
    they fill `room` bytes.
    """
    columns = (rows[name].to_pylist() for name in ("file", "member", "offset", "size"))
    places = [Place(*values) for values in zip(*columns, strict=True)]
    data: list[bytes | None] = []
    for place in places:
        data.append(feed.read(place))
        room -= len(data[-1] or b"")
        if room <= 0:
            break
    return places[: len(data)], data


def _task(
    number: int, batch: Batch, measured: list[bool], places: list[Place], data: list[bytes | None]
) -> Task:
    """Places and data: in the order of the rows. All or none are read here."""
    ordered = [places[i] for i in batch.order]
    fed = [read for i in batch.order if (read := data[i]) is not None]
    ids = batch.rows["id"].take(pa.array(batch.order)).to_pylist()
    train = int((batch.splits == 0).sum())
    return Task(number, ordered, measured, train, ids, fed or None)


def _ahead(work: Iterable[Work]) -> Generator[Work, None, None]:
    """The same, made by a thread that is a few tasks ahead; its errors are raised here."""
    made: queue.Queue[Work | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: Work | BaseException | None) -> None:
        while not stop.is_set():
            try:
                made.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in work:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(_JOIN_SECONDS)
