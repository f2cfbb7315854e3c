"""One part of a preparation that many machines share: its slice of the index in, shards out.

The first to come lists the source and writes the plan; all others check that they mean the same.
`pipeline.stage.merge` makes of all parts the bytes that one machine would have written.
"""

import os
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.catalogue import catalogue
from pipeline.choices import IMAGE_SECONDS
from pipeline.errors import ConfigError
from pipeline.files import sync_directory
from pipeline.format import manifest, parts
from pipeline.format.parts import Parts
from pipeline.preparation import Preparation
from pipeline.progress import ProgressBar
from pipeline.sources import Source, recognise
from pipeline.sources.index import Index
from pipeline.sources.splits import check_counts, refuse_unknown_choices
from pipeline.stage import run
from pipeline.stage.owned import JOURNAL, refuse_foreign
from pipeline.stage.prepare import allowed_bad, finished, locked, refuse_overlap, versions
from pipeline.stage.resume import changed_places, difference, scan
from pipeline.stage.run import Plan


@dataclass(frozen=True)
class Part:
    """What was made. existed: whether it, or the whole, was there already."""

    directory: Path
    part: int
    count: int
    first: int
    end: int
    existed: bool

    @property
    def said(self) -> str:
        """For people."""
        if self.existed:
            return f"{self.directory}: part {self.part} of {self.count} is finished already"
        if not self.part:
            return f"{self.directory}: {self.end} images, to be prepared in {self.count} parts"
        return f"{self.directory}: part {self.part} of {self.count}, {self.end - self.first} images"

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "directory": str(self.directory)}


def prepare_part(
    prep: Preparation,
    source: Path,
    out: Path,
    which: str,
    *,
    workers: int,
    max_bad: int | None,
    progress: ProgressBar,
    image_seconds: float = IMAGE_SECONDS,
) -> Part:
    """Write a part, or go on where it left off. which: `3/64`, or `0/64` to list the source."""
    part, count = parts.parse(which)
    refuse_unknown_choices(prep)
    directory = prep.directory(out)
    refuse_overlap(source, directory)
    if (directory / manifest.NAME).exists():
        finished(directory, prep, source, progress)  # an error if it is something else
        return Part(directory, part, count, 0, 0, existed=True)
    refuse_foreign(directory)
    if (directory / JOURNAL).exists():
        raise ConfigError(f"{directory} was begun as a whole: go on without --part, or remove it")
    found = recognise(source)
    shared = _shared(prep, found, directory, count, progress)
    if not part:
        return Part(directory, 0, count, 0, int(shared.plan["index"]["rows"]), existed=False)
    first, end = shared.bounds(part)
    folder = shared.folder(part)
    with locked(folder):
        existed = shared.done(part) is not None
        if not existed:
            index = load_index(shared, found.root)
            (folder / JOURNAL).mkdir(exist_ok=True)
            allowed = allowed_bad(index.summary.rows, max_bad)
            plan = Plan(prep, index, folder, workers, allowed, image_seconds, first, end)
            with progress(f"part {which}", end - first, "images") as advance:
                made = run.write_part(plan, advance)
            shared.finish(part, made)
    return Part(directory, part, count, first, end, existed)


def load_index(shared: Parts, root: Path) -> Index:
    """The listing that all parts share; ConfigError if the source is not what it was."""
    index = Index.load(shared.index, root)
    if index is None or index.summary.rows_digest != shared.plan["index"]["rows_digest"]:
        raise ConfigError(f"{shared.index} is not what was written: start over with --overwrite")
    if changed := changed_places(root, index.summary.origin):
        raise ConfigError(
            f"{root / changed[0]} has changed since it was listed for {shared.directory}: restore "
            "it, or remove that directory to start over"
        )
    return index


def _shared(
    prep: Preparation, source: Source, directory: Path, count: int, progress: ProgressBar
) -> Parts:
    """The plan that is there, or a new one; ConfigError if it is another one."""
    wanted: dict[str, Any] = {
        "preparation": asdict(prep),
        "source": str(source.root.resolve()),
        "layout": source.layout,
        "versions": versions(),
        "parts": count,
    }
    shared = parts.load(directory)
    if shared is None:
        _list(prep, source, directory, wanted, progress)
        shared = parts.load(directory)
    assert shared is not None
    then = {key: shared.plan[key] for key in wanted}
    if changes := difference(then, wanted):
        raise ConfigError(
            f"{directory / parts.FOLDER / parts.PLAN} is another plan: {changes}. Give the same "
            f"options, or remove {directory} to start over"
        )
    return shared


def _list(
    prep: Preparation, source: Source, directory: Path, plan: dict[str, Any], progress: ProgressBar
) -> None:
    """Make the index in a folder of our own, and the plan; another may be first with either."""
    own = directory / parts.FOLDER / f"listing-{socket.gethostname()}-{os.getpid()}"
    own.mkdir(parents=True)
    try:
        index = scan(prep, source, own, progress)
        check_counts(index, catalogue().get(prep.dataset), prep)
        index.save()
        digest = index.summary.rows_digest
        place = own.with_name(parts.index_folder(digest))
        if not place.exists():
            own.rename(place)
        sync_directory(place.parent)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    if plan["parts"] > index.summary.rows:
        raise ConfigError(f"{plan['parts']} parts for {index.summary.rows} images: say fewer")
    summary = {"rows": index.summary.rows, "rows_digest": digest,
               "fingerprint": index.summary.fingerprint}  # fmt: skip
    parts.create(directory, {**plan, "index": summary})
