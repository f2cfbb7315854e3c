"""Decides which of the listed images go to train, calib, val and test: list to index."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.catalogue import DatasetSpec, catalogue
from pipeline.errors import ConfigError, SourceError
from pipeline.preparation import Preparation
from pipeline.sources.index import SPLITS, Fingerprint, Index, RowWriter
from pipeline.sources.scan import Scan

TRAIN, CALIB, VAL, TEST = range(4)
log = logging.getLogger(__name__)


def unit_hash(sample_id: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the id (and the salt) alone."""
    digest = hashlib.blake2b((salt + sample_id).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def assign(scan: Scan, prep: Preparation, folder: Path) -> Index:
    """Decide on every listed image, in the order of the list, and write the rows to `folder`.

    In this order: classes that the data set's rule leaves out, val by the rule (21K-P: the first
    50 by sorted name of each class with more than 500 images), val as test and another val from
    train (`test_split`), `limit`, and a share `calib` of train. The first image of a class
    stays in train, so that train never loses a class.
    """
    chooser = _Chooser(scan, prep)
    summary = scan.summary
    writer, fingerprint = RowWriter(Index.path(folder)), Fingerprint()
    present = np.zeros((len(SPLITS), len(chooser.classes)), bool)
    for batch, ids in chooser.batches():
        writer.write(batch)
        fingerprint.add(batch, ids)
        present[batch["split"].to_numpy(), batch["label"].to_numpy()] = True
        for code, count in enumerate(np.bincount(batch["split"].to_numpy(), minlength=4).tolist()):
            summary.counts[SPLITS[code]] += count
    writer.close()
    if summary.names is not None:
        name_of = dict(zip(summary.classes, summary.names, strict=True))
        summary.names = [name_of[key] for key in chooser.classes]
    summary.classes = chooser.classes
    summary.rows = sum(summary.counts.values())
    summary.fingerprint = fingerprint.hexdigest()
    warn_of_thin_splits(present, summary.classes, prep)
    return Index(folder, scan.root, summary)


class _Chooser:
    """The decisions, batch by batch; what they need to know of all rows it gathers first."""

    def __init__(self, scan: Scan, prep: Preparation) -> None:
        self.scan, self.prep = scan, prep
        self.spec = catalogue().get(prep.dataset)
        self.has_val = scan.has_val
        self.classes, self.label_of = self._kept()
        self.val_threshold = self._val_threshold() if prep.test_split else 0.0
        self.kept_rows = self._totals() if prep.limit is not None else None
        self._seen = np.zeros(len(self.classes), bool)
        self._position = [0] * len(SPLITS)

    def batches(self) -> Any:
        """(batch of the final index, its ids), in order."""
        for batch in self.scan.batches():
            batch, splits = self._first_decisions(batch)
            if self.kept_rows is not None:
                keep = self._within_limit(splits)
                batch, splits = batch.filter(pa.array(keep)), splits[keep]
            ids = batch["id"].to_pylist()
            labels = batch["label"].to_numpy()
            self._move_to_calib(ids, labels, splits)
            if len(batch):
                yield _with(batch, split=splits, label=labels), ids

    def _kept(self) -> tuple[list[str], NDArray[np.int32]]:
        """Classes by label, and labels by provisional number, −1 where a class is left out."""
        labels = self.scan.relabel()
        classes = self.scan.summary.classes
        least = self.spec.min_images if self.spec else 0
        if not least or self.has_val or self.prep.all_classes:
            return classes, labels
        kept = np.array(self.scan.train_counts) >= least
        names = [classes[label] for label in sorted(labels[kept].tolist())]
        if not names:
            raise SourceError(
                f"{self.scan.root}: none of {len(classes)} classes has the {least} images that "
                f"{self.prep.dataset} asks for; --classes all keeps them all"
            )
        log.warning(
            "%d of %d classes are kept: those with at least %d images (--classes all keeps all)",
            len(names), len(classes), least,
        )  # fmt: skip
        final = {key: label for label, key in enumerate(names)}
        return names, np.array([final.get(classes[label], -1) for label in labels], np.int32)

    def _first_decisions(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, NDArray[np.int8]]:
        """Kept classes, with final labels; splits by rule and of `test_split`."""
        provisional = batch["label"].to_numpy()
        labels = self.label_of[provisional]
        keep = labels >= 0
        splits = batch["split"].to_numpy()[keep].copy()
        if self.spec and self.spec.val_per_class and not self.has_val:
            enough = np.array(self.scan.train_counts)[provisional[keep]] >= self.spec.min_images
            splits[enough & (batch["rank"].to_numpy()[keep] < self.spec.val_per_class)] = VAL
        batch = _with(batch.filter(pa.array(keep)), label=labels[keep])
        if self.prep.test_split:
            hashes = np.array([_val_hash(sample) for sample in batch["id"].to_pylist()])
            was_train = splits == TRAIN
            splits[splits == VAL] = TEST
            splits[was_train & (hashes <= self.val_threshold)] = VAL
        return batch, splits

    def _val_threshold(self) -> float:
        """The images of train with hashes up to it are as many as val shall have."""
        assert self.spec is not None
        wanted = self.spec.test_split["val"]
        hashes: list[NDArray[np.float64]] = []
        for batch in self.scan.batches():
            ids = batch["id"].filter(pa.array(batch["split"].to_numpy() == TRAIN)).to_pylist()
            hashes.append(np.array([_val_hash(sample) for sample in ids]))
        found = np.concatenate(hashes)
        if not self.has_val:
            raise SourceError(f"{self.scan.root} has no val split that --test-split could use")
        share = wanted / (wanted + self.spec.test_split["train"])
        wanted = round(len(found) * share)  # exactly `wanted` where the source is complete
        return float(np.partition(found, wanted - 1)[wanted - 1]) if wanted else -1.0

    def _totals(self) -> NDArray[np.int64]:
        totals = np.zeros(len(SPLITS), np.int64)
        for batch in self.scan.batches():
            totals += np.bincount(self._first_decisions(batch)[1], minlength=len(SPLITS))
        return totals

    def _within_limit(self, splits: NDArray[np.int8]) -> NDArray[np.bool_]:
        """`limit` rows of each split, spread evenly over all of its rows."""
        keep = np.ones(len(splits), bool)
        assert self.prep.limit is not None
        assert self.kept_rows is not None
        for code, total in enumerate(self.kept_rows.tolist()):
            rows = np.flatnonzero(splits == code)
            place = self._position[code] + np.arange(len(rows))
            self._position[code] += len(rows)
            if total > self.prep.limit:
                nearest = -(-place * self.prep.limit // total)
                keep[rows] = nearest * total // self.prep.limit == place
        return keep

    def _move_to_calib(
        self, ids: list[str], labels: NDArray[np.int32], splits: NDArray[np.int8]
    ) -> None:
        for i in np.flatnonzero(splits == TRAIN).tolist():
            if not self._seen[labels[i]]:
                self._seen[labels[i]] = True
            elif self.prep.calib and unit_hash(ids[i]) < self.prep.calib:
                splits[i] = CALIB


def _val_hash(sample_id: str) -> float:
    return unit_hash(sample_id, "val:")


def _with(batch: pa.RecordBatch, **columns: NDArray[Any]) -> pa.RecordBatch:
    """The batch with some columns replaced."""
    for name, values in columns.items():
        at = batch.schema.get_field_index(name)
        batch = batch.set_column(
            at, batch.schema.field(at), pa.array(values, batch.schema.types[at])
        )
    return batch


def warn_of_thin_splits(present: NDArray[np.bool_], classes: list[str], prep: Preparation) -> None:
    """Say which splits are empty or lack a class. present: (splits, classes)."""
    if not present[TRAIN].any():
        log.warning("the source has no train split: nothing to train a network on")
        return
    for code in (TRAIN, CALIB, VAL):
        missing = [name for name, there in zip(classes, present[code], strict=True) if not there]
        if code == VAL and len(missing) == len(classes):
            log.warning("the source has no val split: nothing to report accuracy on")
        elif code == CALIB and len(missing) == len(classes):
            if prep.calib:
                log.warning(
                    "calib is empty (--calib %g of so few images): fusion weights cannot be "
                    "fitted; a larger --calib gives it some",
                    prep.calib,
                )
        elif missing:
            log.warning(
                "%s has no image of %d of %d classes (%s%s)%s",
                SPLITS[code],
                len(missing),
                len(classes),
                ", ".join(missing[:3]),
                ", …" if len(missing) > 3 else "",
                "; a larger --calib gives it some" if code == CALIB else "",
            )


def check_counts(index: Index, spec: DatasetSpec | None, prep: Preparation) -> None:
    """Warn of every count that differs from the catalogue; SourceError without images."""
    found = index.summary
    if not found.rows:
        raise SourceError(f"{index.root}: no images in any of {len(found.classes)} classes")
    if spec is None or prep.limit is not None or prep.all_classes:
        return
    if len(found.classes) != spec.classes:
        log.warning(
            "%s has %d classes, %s usually %d",
            index.root, len(found.classes), spec.name, spec.classes,
        )  # fmt: skip
    counts = {**found.counts, "train": found.counts["train"] + found.counts["calib"]}
    for split, expected in (spec.test_split if prep.test_split else spec.images).items():
        if counts[split] != expected:
            log.warning(
                "%s has %d images in %s, %s usually %d",
                index.root, counts[split], split, spec.name, expected,
            )  # fmt: skip


def refuse_unknown_choices(prep: Preparation) -> None:
    """ConfigError for options that a data set does not have."""
    spec = catalogue().get(prep.dataset)
    if prep.test_split and not (spec and spec.test_split):
        able = [name for name, s in catalogue().items() if s.test_split]
        raise ConfigError(f"--test-split: only {', '.join(able)} have one")
    if prep.all_classes and not (spec and spec.min_images):
        able = [name for name, s in catalogue().items() if s.min_images]
        raise ConfigError(f"--classes all: only {', '.join(able)} leaves classes out")
