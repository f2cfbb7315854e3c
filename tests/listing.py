"""A source as tests see it: recognised, scanned, and every image read back from its place."""

import io
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.preparation import preparation
from pipeline.sources import recognise
from pipeline.sources.index import SPLITS, Index, Place, Summary
from pipeline.sources.reading import Feeder, Reader
from pipeline.sources.scan import Scan
from pipeline.stage.resume import scan
from tests.conftest import photograph

_RNG = np.random.default_rng(3)


def picture() -> bytes:
    """A JPEG file, each another."""
    data = io.BytesIO()
    photograph(_RNG, 24, 20).save(data, "jpeg")
    return data.getvalue()


@dataclass(frozen=True)
class Row:
    split: str
    label: int
    member: str
    rank: int
    data: bytes


@dataclass(frozen=True)
class Listing:
    layout: str
    summary: Summary
    rows: dict[str, Row]  # by id, in order

    def labels(self, split: str) -> list[int]:
        return [row.label for row in self.rows.values() if row.split == split]


def indexed(dataset: str, root: Path, folder: Path, **options: Any) -> Index:
    """What `prepare` works through: splits are decided on."""
    folder.mkdir(exist_ok=True)
    prep = preparation(dataset, 4, size=32, **options)
    return scan(prep, recognise(root), folder, lambda *_: nullcontext(lambda count, note="": None))


def listing(root: Path, folder: Path) -> Listing:
    """`folder` is for what the scan writes."""
    folder.mkdir(exist_ok=True)
    source = recognise(root)
    listed = Scan(folder, root, lambda count, text: None)
    source.scan(listed)
    found = listed.summary
    reader, feeder = Reader(root, found.containers), Feeder(root, found.containers, folder)
    labels = listed.relabel().tolist()
    rows: dict[str, Row] = {}
    for batch in listed.batches():
        for row in batch.to_pylist():
            place = Place(row["file"], row["member"], row["offset"], row["size"])
            data = feeder.read(place) if feeder.feeds(place) else reader.read(place)
            assert row["id"] not in rows, "an id twice"
            rows[row["id"]] = Row(
                SPLITS[row["split"]], labels[row["label"]], row["member"], row["rank"], data
            )
    assert len(rows) == found.rows
    for path in found.origin:
        assert (root / path).exists(), path
    return Listing(source.layout, found, rows)
