"""The list that a source makes of its images, before anything is decided on labels and splits."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.errors import SHOWN, SourceError, escaped, first_few, printable, refuse_undecodable
from pipeline.sources.classes import refuse_look_alikes
from pipeline.sources.index import (
    ROWS,
    SPLITS,
    Container,
    Member,
    RowReader,
    RowWriter,
    Summary,
    stamp,
)
from pipeline.sources.junk import counted

BATCH_ROWS = 1 << 16
log = logging.getLogger(__name__)


class Scan:
    """The list that a source makes of its images: `Source.scan` fills it.

    Classes are given by key (a folder's name, a wnid, a number); what label each gets is known
    when all are.
    """

    def __init__(self, folder: Path, root: Path, advance: Callable[[int, str], None]) -> None:
        self.folder, self.root, self._advance = folder, root, advance
        self.summary = Summary()
        self._ordinals: dict[str, int] = {}
        self._rows: list[list[Any]] = [[] for _ in ROWS]
        self._writer = RowWriter(folder / "scan.arrow")
        self.train_counts: list[int] = []
        self.has_val = False
        self._irregular: list[str] = []  # the first few
        self._irregular_count = 0
        self.junk: Counter[str] = Counter()  # what was passed over, by its kind

    def container(self, path: Path, kind: str, **more: Any) -> int:
        """Number of a new container, for `file` of `add`."""
        refuse_undecodable(path, SourceError)
        relative = os.path.relpath(path, self.root) if path != self.root else ""
        self.summary.containers.append(Container(relative, kind, **more))
        if kind != "folder":
            self.track(path)
        return len(self.summary.containers) - 1

    def track(self, path: Path) -> None:
        """Remember size and time of a file or folder, to notice later that it has changed."""
        refuse_undecodable(path, SourceError)
        self.summary.origin[os.path.relpath(path, self.root)] = stamp(path)

    def add(
        self,
        split: str,
        key: str,
        name: str,
        file: int,
        member: Member,
        rank: int = 0,
    ) -> None:
        """One image: its class, its name within the class, and what it is in which container.

        Its id is `split/key/name`. rank: its place among the sorted names of its class.
        """
        ordinal = self._ordinals.setdefault(key, len(self._ordinals))
        if ordinal == len(self.train_counts):
            self.train_counts.append(0)
        self.train_counts[ordinal] += split == "train"
        self.has_val |= split == "val"
        place = (file, member.name, member.offset, member.size)
        values = (f"{split}/{key}/{name}", SPLITS.index(split), ordinal, *place, rank)
        for column, value in zip(self._rows, values, strict=True):
            column.append(value)
        if len(self._rows[0]) >= BATCH_ROWS:
            self._flush()

    def add_class(
        self, key: str, images: Sequence[tuple[str, Member]], file: int, split: str = "train"
    ) -> None:
        """All images of a class, by name, in the order in which they lie."""
        rank = np.empty(len(images), np.int64)
        rank[sorted(range(len(images)), key=lambda i: images[i][0])] = np.arange(len(images))
        for (name, member), place in zip(images, rank.tolist(), strict=True):
            self.add(split, key, name, file, member, place)

    def note_irregular(self, said: list[str]) -> None:
        """What was found in place of files: all of it is said at once, by `refuse_irregular`."""
        self._irregular += said[: SHOWN - len(self._irregular)]
        self._irregular_count += len(said)

    def refuse_irregular(self) -> None:
        """SourceError for what was noted."""
        if self._irregular_count:
            raise SourceError(
                f"{first_few(self._irregular, self._irregular_count)}: remove what is no image, or "
                "put the images there"
            )

    def finish(
        self, classes: Sequence[str] | None = None, names: dict[str, str] | None = None
    ) -> None:
        """All is listed. classes: keys by label, sorted keys if not said; names: by key."""
        self.refuse_irregular()
        self._flush()
        self._writer.close()
        if self.junk:
            log.warning("%s: left out, as they are no images: %s", self.root, counted(self.junk))
        known = sorted(self._ordinals) if classes is None else list(classes)
        if strange := sorted(set(self._ordinals) - set(known)):
            raise SourceError(
                f"{self.root}: images of {first_few(strange)}, which none of its {len(known)} "
                "classes is"
            )
        refuse_look_alikes(self.root, known)
        if unprintable := [name for name in known if not name.isprintable()]:
            raise SourceError(
                f"{self.root} has classes with line breaks or other control characters in their "
                f"names: rename {first_few(unprintable)}"
            )
        self.summary.classes = known
        if names is not None:
            self.summary.names = [printable(names.get(key, key)) for key in known]

    def relabel(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Labels by the provisional number that rows carry."""
        label_of = {key: label for label, key in enumerate(self.summary.classes)}
        return np.array([label_of[key] for key in self._ordinals], np.int32)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """What was listed; `label` is provisional."""
        return RowReader(self.folder / "scan.arrow").batches()

    def close(self) -> None:
        """The list is no longer needed."""
        (self.folder / "scan.arrow").unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._rows[0]:
            return
        try:
            columns = [
                pa.array(rows, kind) for rows, kind in zip(self._rows, ROWS.types, strict=True)
            ]
        except UnicodeEncodeError as error:
            rows = zip(*self._rows, strict=True)
            file = next(row for row in rows if error.object in row)[3]
            where = self.root / self.summary.containers[file].path
            raise SourceError(
                f"{where}: the name {escaped(error.object)} is not valid UTF-8: rename it"
            ) from error
        self._writer.write(pa.record_batch(columns, schema=ROWS))
        self.summary.rows += len(self._rows[0])
        self._advance(len(self._rows[0]), "")
        self._rows = [[] for _ in ROWS]


@dataclass(frozen=True)
class Source:
    """What the user named, as one of the layouts that people have: each is a subclass."""

    root: Path
    layout: ClassVar[str]  # its name, as in datasets.toml
    accepts: ClassVar[str]  # for people: what is accepted

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether `root` is laid out like this; cheap, by names and first bytes."""
        raise NotImplementedError

    def scan(self, scan: Scan) -> None:
        """List every image once and call `scan.finish`; SourceError if that cannot be done."""
        raise NotImplementedError
