"""An index and a preparation in; shards and samples.parquet written, and what they hold, out.

The images are read once, in the order of the index; each goes to the shards of its split.
Every second or so all that was written is brought to the disk and noted (`pipeline.stage.resume`).
A run that was interrupted, however rudely, goes on from the last note: what is done again is the
work of about a second, and of the time that the disk took to sync. Bytes do not depend on
interruptions, nor on the number of workers.
"""

import logging
import shutil
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import SourceError, printable
from pipeline.files import sync_directory
from pipeline.format.beton import image_field
from pipeline.format.beton_writer import Written, publish
from pipeline.format.samples import NAME as SAMPLES
from pipeline.preparation import Preparation
from pipeline.progress import Advance, Watch, readable
from pipeline.sources.index import SPLITS, Index
from pipeline.stage import samples
from pipeline.stage.blame import Verdicts
from pipeline.stage.journal import Commits
from pipeline.stage.messages import Chunk
from pipeline.stage.owned import JOURNAL
from pipeline.stage.pool import Pool
from pipeline.stage.resume import Note, State
from pipeline.stage.statistics import Result, Tally
from pipeline.stage.tasks import Batch, Feed, chunk_images, probe, slot_bytes, tasks
from pipeline.stage.write import Shards, mapping

WRITING_THREADS = 8  # at most; hashing and writing leave Python's lock
WORKERS_A_WRITING_THREAD = 4  # whose payloads one thread can write without falling behind
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is to be done, and with what. max_bad: images that may be unusable; image_seconds: that
    one may take. first, end: rows of the index, of one part; otherwise it is all of them.
    """

    prep: Preparation
    index: Index
    directory: Path
    workers: int
    max_bad: int
    image_seconds: float
    first: int = 0
    end: int | None = None

    @property
    def rows(self) -> int:
        """Images to work on."""
        return (self.index.summary.rows if self.end is None else self.end) - self.first

    @property
    def journal(self) -> Path:
        """Where the run leaves what one that goes on needs."""
        return self.directory / JOURNAL


def write(plan: Plan, advance: Advance) -> Result:
    """All shards, then samples.parquet; all under their final names."""
    with closing(State(plan.journal, plan.prep)) as state:
        if state.tally.rows:
            log.info("resuming after %d of %d images", state.tally.rows, plan.rows)
            advance(state.tally.rows, "")
        if not state.files:
            state.finish(_write_shards(plan, state, advance))
        for name in state.files:
            publish(plan.directory / name)
        table = samples.write(plan.directory, plan.index, state.outcomes, state.reasons)
        publish(plan.directory / SAMPLES)
    files = {**state.files, SAMPLES: table}
    for folder in {(plan.directory / name).parent for name in files}:
        sync_directory(folder)
    return Result(state.tally, files)


def write_part(plan: Plan, advance: Advance) -> dict[str, Any]:
    """The shards of a part, under their final names in its folder; what `merge` needs of it."""
    with closing(State(plan.journal, plan.prep)) as state:
        if state.tally.rows:
            advance(state.tally.rows, "")
        if not state.files:
            state.finish(_write_shards(plan, state, advance))
        for name in state.files:
            publish(plan.directory / name)
        for folder in {(plan.directory / name).parent for name in state.files}:
            sync_directory(folder)
        return {
            "rows": [plan.first, plan.end],
            "tally": state.tally.to_json(),
            "files": {name: [*vars(file).values()] for name, file in state.files.items()},
            "outcomes": [state.outcomes.rows, state.outcomes.checksum],
            "reasons": sorted(state.reasons.items()),
        }


def _counts(plan: Plan) -> dict[str, int]:
    """Rows to work on, by split."""
    if plan.end is None:
        return plan.index.summary.counts
    found, left = np.zeros(len(SPLITS), np.int64), plan.rows
    for batch in plan.index.batches(plan.first):
        codes = batch["split"].to_numpy()[:left]
        found += np.bincount(codes, minlength=len(SPLITS))
        left -= len(codes)
        if not left:
            break
    return dict(zip(SPLITS, found.tolist(), strict=True))


def _write_shards(plan: Plan, state: State, advance: Advance) -> dict[str, Written]:
    with ExitStack() as stack:
        threads = min(WRITING_THREADS, plan.workers // WORKERS_A_WRITING_THREAD)
        each_plane = stack.enter_context(mapping(threads))
        counts = _counts(plan)
        shards = Shards(plan.directory, plan.prep, counts, state.marks, each_plane)
        stack.callback(shards.close)

        def keep(note: Note) -> None:
            shards.sync()
            state.keep(note)

        commits = Commits(lambda: state.describe(shards.marks()), keep)
        stack.callback(commits.close)
        if state.tally.rows < plan.rows:
            _write_chunks(plan, state, shards, commits, advance)
        if plan.end is None:
            _refuse_nothing_written(state.tally)
        commits.last()
        return shards.finish()


def _write_chunks(
    plan: Plan, state: State, shards: Shards, commits: Commits, advance: Advance
) -> None:
    prep, index, start = plan.prep, plan.index, state.tally.rows
    size = chunk_images(prep, plan.rows - start, plan.workers)
    processes = min(plan.workers, -(-(plan.rows - start) // size))
    with Verdicts(plan.journal) as verdicts, Watch() as watch:
        feed = Feed(index, index.folder, watch)
        room = slot_bytes(prep, size)
        with Pool(prep, index, processes, room, verdicts, plan.image_seconds) as pool:
            _check_space(plan, state.tally, pool, feed)
            with closing(tasks(index, prep, feed, plan.first + start, size, plan.end)) as work:
                for batch, chunk, payload in pool.run(work):
                    shards.append(chunk, batch, payload)
                    _add(state, chunk, batch)
                    _refuse_too_many_bad(state.tally, plan.max_bad)
                    commits.maybe()
                    advance(len(chunk.reasons), _note(plan.directory, state))
            pool.dismiss()


def _add(state: State, chunk: Chunk, batch: Batch) -> None:
    """Note what became of the rows of a batch."""
    shapes = np.empty_like(chunk.shapes)
    shapes[batch.order] = chunk.shapes
    places = zip(batch.order.tolist(), chunk.reasons, strict=True)
    bad = sorted((place, reason) for place, reason in places if reason is not None)
    named = [(batch.rows["id"][place].as_py(), reason) for place, reason in bad]
    splits = [SPLITS[code] for code in batch.splits.tolist()]
    start = state.tally.rows
    reasons = [(start + place, reason) for place, reason in bad]
    state.add(shapes, reasons, state.tally.plus(chunk, splits, named))


def _check_space(plan: Plan, tally: Tally, pool: Pool, feed: Feed) -> None:
    """Reckon from a few images what the shards will take; SourceError if it cannot fit."""
    for _, chunk, _ in pool.run([probe(plan.index, plan.prep, feed, plan.first + tally.rows)]):
        stored = chunk.sizes.shape[1]
        if not stored:
            return
        image = float(chunk.sizes.sum()) / stored
        row_bytes = image_field(plan.prep).row.itemsize * plan.prep.splits
        total = (image + row_bytes) * plan.rows
        left = image * (plan.rows - tally.rows) + row_bytes * (plan.rows - tally.written)
        free = shutil.disk_usage(plan.directory).free
        log.info(
            "about %s of shards (%.0f bytes a sample and plane); %s free",
            readable(total), image / plan.prep.splits, readable(free),
        )  # fmt: skip
        if left > 1.05 * free:
            raise SourceError(
                f"{plan.directory}: the shards need about {readable(left)} more, but only "
                f"{readable(free)} is free: choose another --out, or free some space"
            )


def _refuse_too_many_bad(tally: Tally, max_bad: int) -> None:
    if tally.bad > max_bad:
        shown = [f"\n  {printable(': '.join(pair))}" for pair in tally.first_bad]
        shown += ["\n  …"] * (tally.bad > len(shown))
        raise SourceError(
            f"{tally.bad} images so far cannot be used, more than --max-bad "
            f"{max_bad}:{''.join(shown)}\nRepair or remove them, or give a larger "
            "--max-bad, with which the same command goes on; with --report-bad it lists them "
            "all at its end"
        )


def _refuse_nothing_written(tally: Tally) -> None:
    if not tally.written:
        sample, reason = tally.first_bad[0]
        raise SourceError(f"no image can be used; {sample}: {reason}")


def _note(directory: Path, state: State) -> str:
    """For the progress line."""
    payload = sum(mark.payload_bytes for mark in state.marks.values())
    free = shutil.disk_usage(directory).free
    return f"{state.tally.bad} bad, {readable(payload)} written, {readable(free)} free"
