"""Where an interrupted run was: its index and its state, taken up, or new ones.

All of it lies in the journal of the directory, which goes when the run ends.
"""

import logging
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.catalogue import catalogue
from pipeline.errors import ConfigError
from pipeline.files import sync_directory
from pipeline.format.beton_writer import DIGEST_BYTES, Mark, Written
from pipeline.preparation import Preparation
from pipeline.progress import ProgressBar, Watch
from pipeline.sources import Source
from pipeline.sources.index import SPLITS, Index, stamp
from pipeline.sources.scan import Scan
from pipeline.sources.splits import assign, check_counts
from pipeline.stage.blame import VERDICTS
from pipeline.stage.journal import Journal, Record, Table, damaged, load, save
from pipeline.stage.owned import JOURNAL, remove
from pipeline.stage.samples import OUTCOME
from pipeline.stage.statistics import Tally

SAME = "%s: dates have changed, but not names, sizes and labels: taken to be the same images"
_AGAIN = "again"  # in the journal: a second index, while a source is looked at anew
_STRETCHES = 3  # of a shard, each with digests of its own
_DIGEST = np.dtype([("stretch", "<u4"), ("digest", f"V{DIGEST_BYTES}")])
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Note:
    """The state of a run at one moment; and what was added since the last one."""

    record: Record
    digests: NDArray[Any]
    reasons: list[tuple[int, str]]


class State:
    """How far a run is. Its numbers are written anew each time, so that going on costs the same
    however long the run was; only digests of pieces, sizes of images and reasons are added to.
    """

    def __init__(self, folder: Path, prep: Preparation) -> None:
        self._path = folder / "state"
        found = load(self._path)
        known = found or {"outcomes": (0, 0), "digests": (0, 0), "reasons": 0, "marks": {}}
        self.outcomes = Table(folder / "outcomes", OUTCOME, *known["outcomes"])
        self._digests = Table(folder / "digests", _DIGEST, *known["digests"])
        self._journal = Journal(folder / "reasons.jsonl")
        self.reasons = {r["row"]: r["reason"] for r in self._journal.read(known["reasons"])}
        if len(self.reasons) < known["reasons"]:
            raise damaged(self._journal.path)
        self._new_reasons: list[tuple[int, str]] = []
        self.tally = Tally.from_json(found["tally"]) if found else Tally.zero(prep)
        self.files = {name: Written(*file) for name, file in known.get("files", {}).items()}
        self.marks = self._recalled(known["marks"])

    def _recalled(self, marks: dict[str, list[Any]]) -> dict[str, Mark]:
        """With the digests that belong to each."""
        table = self._digests.read(0, self._digests.rows)
        table = table[np.argsort(table["stretch"], kind="stable")]
        ends = np.searchsorted(table["stretch"], np.arange(1, len(marks) * _STRETCHES + 1))
        parts = [part["digest"].tobytes() for part in np.split(table, ends)]
        return {
            name: Mark(
                samples, size, end, tuple(begun), tuple(parts[i * _STRETCHES :][: len(begun)])
            )
            for i, (name, (samples, size, end, begun)) in enumerate(marks.items())
        }

    def add(self, shapes: NDArray[np.int32], reasons: list[tuple[int, str]], tally: Tally) -> None:
        """What became of the next rows: shapes (m, 2) as (width, height); reasons: by row."""
        self.outcomes.append(np.ascontiguousarray(shapes, "<i4").view(OUTCOME)[:, 0])
        self.reasons.update(reasons)
        self._new_reasons += reasons
        self.tally = tally

    def describe(self, marks: dict[str, Mark]) -> Note:
        """The state that the writers of these shards are in now."""
        digests = []
        for i, mark in enumerate(marks.values()):
            for j, new in enumerate(mark.digests):
                rows = np.empty(len(new) // DIGEST_BYTES, _DIGEST)
                rows["stretch"] = i * _STRETCHES + j
                rows["digest"] = np.frombuffer(new, _DIGEST["digest"])
                digests.append(rows)
        reasons, self._new_reasons = self._new_reasons, []
        self.marks = marks
        record = {
            "tally": self.tally.to_json(),
            "outcomes": (self.outcomes.rows, self.outcomes.checksum),
            "reasons": len(self.reasons),
            "marks": {
                name: (mark.samples, mark.payload_bytes, mark.end, mark.begun)
                for name, mark in marks.items()
            },
        }
        return Note(record, np.concatenate(digests), reasons)

    def keep(self, note: Note) -> None:
        """Until it is on the disk. What it describes has to be there already."""
        self._digests.append(note.digests)
        if note.reasons:
            self._journal.append(*({"row": row, "reason": why} for row, why in note.reasons))
        self.outcomes.sync()
        self._digests.sync()
        found = (self._digests.rows, self._digests.checksum)
        save(self._path, {**note.record, "digests": found})

    def finish(self, files: dict[str, Written]) -> None:
        """All shards are whole: from here on they are published, and not written any more."""
        content = {name: tuple(vars(file).values()) for name, file in files.items()}
        save(self._path, {**(load(self._path) or {}), "files": content})
        self.files = files

    def close(self) -> None:
        """Let go of the files."""
        for file in (self.outcomes, self._digests, self._journal):
            file.close()


def take_up_index(
    prep: Preparation, source: Source, directory: Path, versions: dict[str, str],
    progress: ProgressBar,
) -> Index:  # fmt: skip
    """The index that an interrupted run was working on, or a new one. versions: of what decides on
    the bytes of a shard.
    """
    folder = directory / JOURNAL
    _adopt(folder)
    header = {"preparation": asdict(prep), "source": str(source.root.resolve()),
              "source_layout": source.layout, "versions": versions}  # fmt: skip
    if (index := Index.load(folder, source.root)) is not None:
        if (begun := load(folder / "header")) is None:
            raise damaged(folder / "header")
        if changes := difference(begun, header):
            raise ConfigError(
                f"{directory} was begun otherwise: {changes}. Give the same options to go on, or "
                "--overwrite to start over"
            )
        return _unchanged(index, prep, source, directory, progress)
    remove(directory)
    folder.mkdir()
    save(folder / "header", header)
    index = scan(prep, source, folder, progress)
    check_counts(index, catalogue().get(prep.dataset), prep)
    index.save()
    sync_directory(directory)
    return index


def scan(prep: Preparation, source: Source, folder: Path, progress: ProgressBar) -> Index:
    """List the images of a source and decide on their splits; the index is in `folder`."""
    what = f"listing {source.root}"
    with progress("index", 0, "images") as advance, Watch() as watch:

        def listed_more(count: int, note: str) -> None:
            watch.begin(what)
            advance(count, note)

        watch.begin(what)
        listed = Scan(folder, source.root, listed_more)
        source.scan(listed)
        watch.begin("")
        index = assign(listed, prep, folder)
    listed.close()
    return index


def _unchanged(
    index: Index, prep: Preparation, source: Source, directory: Path, progress: ProgressBar
) -> Index:
    """The index, if the source is still what it was when it was indexed."""
    if not changed_places(source.root, index.summary.origin):
        return index
    folder = directory / JOURNAL
    again = folder / _AGAIN
    shutil.rmtree(again, ignore_errors=True)
    again.mkdir()
    now = scan(prep, source, again, progress)
    if now.summary.fingerprint != index.summary.fingerprint:
        raise ConfigError(
            f"{source.root} has changed since {directory} was begun from it: "
            f"{counted(index.summary.counts, now.summary.counts)}. Restore it to go on, or "
            "--overwrite to start over"
        )
    log.warning(SAME, source.root)
    now.save()
    _adopt(folder)
    now.folder = folder
    return now


def _adopt(folder: Path) -> None:
    """Let the index in `folder`/again, once it has been saved, take the place of that in `folder`;
    whoever is killed meanwhile goes on here. Its summary comes last: until then it is whole.
    Verdicts are by place, and places have changed.
    """
    again = folder / _AGAIN
    if (again / "index.json").exists():
        (folder / VERDICTS).unlink(missing_ok=True)
        for path in sorted(again.iterdir(), key=lambda path: path.name == "index.json"):
            path.replace(folder / path.name)
        sync_directory(folder)


def difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """The keys that differ, at any depth, with both values; empty where none does."""
    return "; ".join(_differences("", then, now))


def _differences(where: str, then: Any, now: Any) -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*then, *(key for key in now if key not in then)]
        return [text for key in keys for text in _differences(key, then.get(key), now.get(key))]
    return [] if then == now else [f"{where} was {then}, now it is {now}"]


def changed_places(root: Path, origin: dict[str, list[int]]) -> list[str]:
    """Files and folders of a source whose size or date is no longer the recorded one."""
    changed = []
    for name, recorded in origin.items():
        with suppress(OSError):
            if stamp(root / name) == recorded:
                continue
        changed.append(name)
    return changed


def counted(then: dict[str, int], now: dict[str, int]) -> str:
    """How two counts by split differ, in words."""

    def words(counts: dict[str, int]) -> tuple[str, str]:
        parts = [f"{counts[split]} {split}" for split in SPLITS if counts[split]]
        return f"{sum(counts.values())} images", f"({', '.join(parts)})"

    then_all, then_parts = words(then)
    now_all, now_parts = words(now)
    if then == now:
        return f"{then_all} {then_parts} then and now, but other files, sizes or classes"
    return f"{then_all} then, {now_all} now; {then_parts} then, {now_parts} now"
