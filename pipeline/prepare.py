"""`spectral prepare`: a source and a preparation in, a finished directory of shards out."""

import fcntl
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pipeline import manifest
from pipeline.beton import PARTIAL
from pipeline.catalogue import catalogue
from pipeline.errors import ConfigError, SourceError
from pipeline.manifest import Manifest
from pipeline.options import Preparation
from pipeline.progress import Advance
from pipeline.run import SAMPLES, Run
from pipeline.sources import Index, Source, recognise
from pipeline.splits import SPLITS, assign, warn_of_thin_splits

log = logging.getLogger(__name__)

ProgressBar = Callable[[str, int, str], AbstractContextManager[Advance]]


def prepare(
    prep: Preparation,
    source: Path,
    out: Path,
    *,
    workers: int,
    max_bad: int | None,
    progress: ProgressBar,
) -> tuple[Path, Manifest, bool]:
    """Write the shards of `source`. Returns (directory, manifest, whether it was there already).

    max_bad: quarantined images that are tolerated; None: 0.1 % of all, but at least 20.
    """
    directory = prep.directory(out)
    if (directory / manifest.NAME).exists():
        return directory, _finished(directory, prep, source), True
    found = recognise(source)
    index = assign(_checked(found.index(), found, prep), prep.calib, prep.limit)
    with _lock(directory):
        _clear_unfinished(directory)
        warn_of_thin_splits(index, prep.calib)
        allowed = max(20, math.ceil(len(index.table) / 1000)) if max_bad is None else max_bad
        run = Run(prep, found, index, directory, allowed)
        with progress("prepare", len(index.table), "images") as advance:
            result = run.write(workers, advance)
        result.save(directory)
    return directory, result, False


def _checked(index: Index, source: Source, prep: Preparation) -> Index:
    """Warn of every count that differs from the catalogue; SourceError without images."""
    if not len(index.table):
        raise SourceError(f"{source.root}: no images in any of {len(index.classes)} classes")
    spec = catalogue().get(prep.dataset)
    if spec is None:
        return index
    if len(index.classes) != spec.classes:
        log.warning(
            "%s has %d classes, %s usually %d",
            source.root,
            len(index.classes),
            spec.name,
            spec.classes,
        )
    counts = {
        row["values"]: row["counts"] for row in index.table["split"].value_counts().to_pylist()
    }
    for split, expected in spec.images.items():
        if counts.get(split, 0) != expected:
            log.warning(
                "%s has %d images in %s, %s usually %d",
                source.root,
                counts.get(split, 0),
                split,
                spec.name,
                expected,
            )
    return index


def _finished(directory: Path, prep: Preparation, source: Path) -> Manifest:
    found = manifest.load(directory)
    if found.preparation != prep:
        raise ConfigError(f"{directory} holds another preparation: {found.preparation}")
    if source.resolve() != Path(found.source):
        raise ConfigError(
            f"{directory} was made from {found.source}, not from {source.resolve()}: choose "
            "another --out or another dataset name, or remove the directory first"
        )
    return found


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Hold `directory` against a second run; a crash releases it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another run is at work on {directory}: wait for it") from error
        yield


def _clear_unfinished(directory: Path) -> None:
    """Remove what an interrupted run left; without a manifest nothing there is final."""
    for split in SPLITS:
        if (directory / split).is_dir():
            log.info("%s/%s is left from an interrupted run: starting over", directory, split)
            shutil.rmtree(directory / split)
    (directory / (SAMPLES + PARTIAL)).unlink(missing_ok=True)
