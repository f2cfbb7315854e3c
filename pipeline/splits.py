"""An index in, the samples of train, calib and val out."""

import hashlib
import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.sources import Index

SPLITS = ("train", "calib", "val")
log = logging.getLogger(__name__)


def unit_hash(sample_id: str) -> float:
    """A number in [0, 1) that depends on the id alone."""
    digest = hashlib.blake2b(sample_id.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def assign(index: Index, calib: float, limit: int | None) -> Index:
    """Move a share `calib` of train to the split calib; order by split, else as it was.

    The first image of a class always stays, so that train never loses a class.
    `limit`: at most so many images of train (calib included) and of val, spread evenly.
    """
    table = index.table
    if limit is not None:
        table = pa.concat_tables(
            [_spread(table.filter(pc.equal(table["split"], s)), limit) for s in ("train", "val")]
        )
    ids, splits = table["id"].to_pylist(), table["split"].to_pylist()
    labels = table["label"].to_numpy()
    first = np.ones(len(labels), bool)
    first[1:] = labels[1:] != labels[:-1]
    chosen = [
        "calib" if split == "train" and not keep and unit_hash(sample) < calib else split
        for sample, split, keep in zip(ids, splits, first, strict=True)
    ]
    order = np.argsort([SPLITS.index(split) for split in chosen], kind="stable")
    table = table.set_column(1, "split", pa.array(chosen, pa.string())).take(order)
    return Index(table.combine_chunks(), index.classes)


def _spread(table: pa.Table, limit: int) -> pa.Table:
    if len(table) <= limit:
        return table
    rows: NDArray[np.int64] = np.arange(limit) * len(table) // limit
    return table.take(rows)


def warn_of_thin_splits(index: Index, calib: float) -> None:
    """Say which splits are empty or lack a class."""
    labels, splits = index.table["label"], index.table["split"]
    for split in SPLITS:
        present = set(labels.filter(pc.equal(splits, split)).to_pylist())
        missing = [name for i, name in enumerate(index.classes) if i not in present]
        if split == "val" and not present:
            log.warning("the source has no val split: nothing to report accuracy on")
        elif split == "calib" and not present:
            log.warning(
                "calib is empty (--calib %g of so few images): fusion weights cannot be fitted; "
                "a larger --calib gives it some",
                calib,
            )
        elif missing:
            log.warning(
                "%s has no image of %d of %d classes (%s%s)%s",
                split,
                len(missing),
                len(index.classes),
                ", ".join(missing[:3]),
                ", …" if len(missing) > 3 else "",
                "; a larger --calib gives it some" if split == "calib" else "",
            )
