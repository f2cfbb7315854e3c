"""An index and a preparation in; shards and samples.parquet written, the manifest out.

The images are read once, in the order of the index; each goes to the shards of its split.
Every second or so all that was written is brought to the disk and noted in the journal
(`pipeline.stage.commits`). A run that was interrupted, however rudely, goes on from the last note:
what is done again is the work of about a second, and of the time that the disk took to
sync. Bytes do not depend on interruptions, nor on the number of workers.
"""

import logging
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console import printable
from pipeline.errors import SourceError
from pipeline.files import sync_directory
from pipeline.format import manifest
from pipeline.format.beton import digest, image_field
from pipeline.format.beton_writer import BetonWriter, Mark, publish
from pipeline.preparation import Preparation
from pipeline.progress import Advance, readable
from pipeline.sources.index import SPLITS, Index
from pipeline.stage import samples
from pipeline.stage.commits import Commits
from pipeline.stage.journal import Journal, Record
from pipeline.stage.pool import Pool
from pipeline.stage.samples import Outcomes
from pipeline.stage.tally import SHOWN_BAD, Tally
from pipeline.stage.tasks import Part, chunk_images, probe, slot_bytes, tasks
from pipeline.stage.verdicts import Verdicts
from pipeline.stage.worker import Chunk, Task

WRITING_THREADS = 8  # at most; hashing and writing leave Python's lock
WORKERS_A_WRITING_THREAD = 4  # whose payloads one thread can write without falling behind
Writers = dict[str, list[BetonWriter]]  # by split, then by plane
log = logging.getLogger(__name__)


class Run:
    """One run, from where the journal in `work` says that the last one was."""

    def __init__(
        self,
        prep: Preparation,
        index: Index,
        directory: Path,
        work: Path,
        max_bad: int,
        image_seconds: float,
    ) -> None:
        self.prep, self.index, self.directory, self.work = prep, index, directory, work
        self.max_bad, self.image_seconds = max_bad, image_seconds
        self.tally = Tally.zero(prep)
        self.reasons: dict[int, str] = {}
        self.files: dict[str, dict[str, int | str]] = {}
        self._new_reasons: list[tuple[int, str]] = []
        self._marks: dict[str, list[Mark]] = {}
        self._outcomes = ""

    def write(self, workers: int, advance: Advance) -> None:
        """All shards, then samples.parquet; all under their final names."""
        with closing(Journal(self.work / "commits.jsonl")) as journal:
            for record in journal.read():
                self._recall(record)
            if self.tally.rows:
                log.info("resuming after %d of %d images", self.tally.rows, self.index.summary.rows)
                advance(self.tally.rows, "")
            outcomes = Outcomes(self.work / "outcomes", self.tally.rows, self._outcomes)
            with closing(outcomes):
                if not self.files:
                    self._write_shards(workers, journal, outcomes, advance)
                for name in self.files:
                    publish(self.directory / name)
                self._write_samples(outcomes)
        for split in self._splits():
            sync_directory(self.directory / split)

    def _recall(self, record: Record) -> None:
        """Take in a record of the journal."""
        if "files" in record:
            self.files = record["files"]
            return
        self.tally = Tally.from_json(record["tally"])
        self._outcomes = record["outcomes"]
        self.reasons.update((row, reason) for row, reason in record["reasons"])
        for split, marks in record["marks"].items():
            known = self._marks.setdefault(split, [Mark() for _ in range(self.prep.splits)])
            for k, content in enumerate(marks):
                pages = known[k].pages
                pages.extend(content["pages"])
                known[k] = Mark(**{**content, "pages": pages})

    def _splits(self) -> list[str]:
        return [split for split in SPLITS if self.index.summary.counts[split]]

    def _write_shards(
        self, workers: int, journal: Journal, outcomes: Outcomes, advance: Advance
    ) -> None:
        left = self.index.summary.rows - self.tally.rows
        size = chunk_images(self.prep, left, workers)
        _allow_open_files(2 * self.prep.splits * len(self._splits()) + 256)
        with ExitStack() as stack:
            writers = {split: self._writers(split, stack) for split in self._splits()}
            for split in writers:
                sync_directory(self.directory / split)
            sync = partial(_sync, writers, outcomes)
            commits = Commits(journal, partial(self._record, writers, outcomes), sync)
            stack.enter_context(closing(commits))
            if left:
                verdicts = stack.enter_context(Verdicts(self.work))
                processes = min(workers, -(-left // size))
                pool = stack.enter_context(self._pool(processes, size, verdicts))
                self._check_space(pool)
                writing = min(WRITING_THREADS, workers // WORKERS_A_WRITING_THREAD)
                self._write_chunks(pool, size, writers, outcomes, commits, advance, writing)
                pool.dismiss()
            self._refuse_nothing_written()
            commits.last()
            with _mapping(WRITING_THREADS) as each_shard:
                written = list(each_shard(BetonWriter.finish, chain(*writers.values())))
            names = [
                manifest.shard_name(split, k)
                for split, row in writers.items()
                for k in range(len(row))
            ]
            files = {name: vars(file) for name, file in zip(names, written, strict=True)}
        journal.append({"files": files})
        self.files = files

    def _writers(self, split: str, stack: ExitStack) -> list[BetonWriter]:
        (self.directory / split).mkdir(exist_ok=True)
        field, rows = image_field(self.prep), self.index.summary.counts[split]
        marks = self._marks.get(split, [None] * self.prep.splits)
        return [
            stack.enter_context(
                closing(
                    BetonWriter(self.directory / manifest.shard_name(split, k), field, rows, mark)
                )
            )
            for k, mark in enumerate(marks)
        ]

    def _pool(self, workers: int, size: int, verdicts: Verdicts) -> Pool:
        return Pool(
            self.prep,
            self.index.root,
            self.index.summary.containers,
            workers,
            slot_bytes(self.prep, size),
            verdicts,
            self.image_seconds,
        )

    def _check_space(self, pool: Pool) -> None:
        """Reckon from a few images what the shards will take; SourceError if it cannot fit."""
        for chunk, _ in pool.run([probe(self.index, self.prep, self.work, self.tally.rows)]):
            stored = chunk.sizes.shape[1]
            if not stored:
                return
            image = float(chunk.sizes.sum()) / stored
            rows = self.index.summary.rows
            row_bytes = image_field(self.prep).row.itemsize * self.prep.splits
            total = (image + row_bytes) * rows
            left = image * (rows - self.tally.rows) + row_bytes * (rows - self.tally.written)
            free = shutil.disk_usage(self.directory).free
            log.info(
                "about %s of shards (%.0f bytes a sample and plane); %s free",
                readable(total), image / self.prep.splits, readable(free),
            )  # fmt: skip
            if left > 1.05 * free:
                raise SourceError(
                    f"{self.directory}: the shards need about {readable(left)} more, but only "
                    f"{readable(free)} is free: choose another --out, or free some space"
                )

    def _write_chunks(
        self,
        pool: Pool,
        size: int,
        writers: Writers,
        outcomes: Outcomes,
        commits: Commits,
        advance: Advance,
        writing: int,
    ) -> None:
        parts: dict[int, Part] = {}
        work = tasks(self.index, self.prep, self.work, self.tally.rows, size)

        def noted() -> Iterator[Task]:
            for task, part in work:
                parts[task.number] = part
                yield task

        with closing(work), _mapping(writing) as each_plane:
            for chunk, payload in pool.run(noted()):
                part = parts.pop(chunk.number)
                self._take(chunk, part, payload, writers, outcomes, each_plane)
                commits.maybe()
                advance(len(chunk.reasons), self._note())

    def _take(
        self,
        chunk: Chunk,
        part: Part,
        payload: memoryview,
        writers: Writers,
        outcomes: Outcomes,
        each_plane: Callable[..., Iterable[None]],
    ) -> None:
        """Write what a worker made of a part, and note what became of it.

        each_plane: `map`, or that of a pool of threads.
        """
        stored = np.array([reason is None for reason in chunk.reasons])
        payload = memoryview(chunk.inline) if chunk.inline is not None else payload
        splits, labels = part.splits[stored], part.labels[stored]
        ends = np.searchsorted(splits, range(len(SPLITS) + 1)).tolist()
        row = len(payload) // self.prep.splits

        def append(k: int) -> None:
            at, sizes = k * row, chunk.sizes[k]
            for code, (first, end) in enumerate(pairwise(ends)):
                if first < end:
                    size = int(sizes[first:end].sum())
                    writers[SPLITS[code]][k].append(
                        payload[at : at + size],
                        sizes[first:end],
                        labels[first:end],
                        chunk.stored_shapes[first:end],
                    )
                    at += size

        list(each_plane(append, range(self.prep.splits)))
        shapes = np.empty_like(chunk.shapes)
        shapes[part.order] = chunk.shapes
        outcomes.append(shapes)
        self._note_bad(chunk, part)
        self.tally.add(chunk, [SPLITS[code] for code in part.splits.tolist()])
        self._refuse_too_many_bad()

    def _note_bad(self, chunk: Chunk, part: Part) -> None:
        for place, reason in sorted(zip(part.order.tolist(), chunk.reasons, strict=True)):
            if reason is not None:
                self._new_reasons.append((self.tally.rows + place, reason))
                if len(self.tally.first_bad) < SHOWN_BAD:
                    self.tally.first_bad.append((part.rows["id"][place].as_py(), reason))

    def _refuse_too_many_bad(self) -> None:
        if self.tally.bad > self.max_bad:
            shown = [f"\n  {printable(': '.join(pair))}" for pair in self.tally.first_bad]
            shown += ["\n  …"] * (self.tally.bad > len(shown))
            raise SourceError(
                f"{self.tally.bad} images so far cannot be used, more than --max-bad "
                f"{self.max_bad}:{''.join(shown)}\nRepair or remove them, or give a larger "
                "--max-bad, with which the same command goes on; with --report-bad it lists them "
                "all at its end"
            )

    def _refuse_nothing_written(self) -> None:
        if not self.tally.written:
            sample, reason = self.tally.first_bad[0]
            raise SourceError(f"no image can be used; {sample}: {reason}")

    def _note(self) -> str:
        """For the progress line."""
        payload = sum(mark.payload_bytes for row in self._marks.values() for mark in row)
        free = shutil.disk_usage(self.directory).free
        return f"{self.tally.bad} bad, {readable(payload)} written, {readable(free)} free"

    def _record(self, writers: Writers, outcomes: Outcomes) -> Record:
        """What the journal keeps of the state that the writers are in."""
        marks = {split: [writer.mark() for writer in row] for split, row in writers.items()}
        self._marks = marks
        self.reasons.update(self._new_reasons)
        new, self._new_reasons = self._new_reasons, []
        return {
            "tally": self.tally.to_json(),
            "outcomes": outcomes.digest,
            "reasons": new,
            "marks": {split: [vars(mark) for mark in row] for split, row in marks.items()},
        }

    def _write_samples(self, outcomes: Outcomes) -> None:
        partial = samples.write(self.directory, self.index, outcomes, self.reasons)
        size = partial.stat().st_size
        self.files[samples.NAME] = {"size": size, "digest": digest(partial)}
        publish(self.directory / samples.NAME)


def _sync(writers: Writers, outcomes: Outcomes) -> None:
    """Until all that was written is on the disk."""
    for row in writers.values():
        for writer in row:
            writer.sync()
    outcomes.sync()


@contextmanager
def _mapping(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
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
