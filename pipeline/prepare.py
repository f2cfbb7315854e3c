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
from pipeline.errors import ConfigError, DamagedError, SourceError
from pipeline.manifest import Manifest
from pipeline.options import Preparation
from pipeline.progress import Advance
from pipeline.run import SAMPLES, Run
from pipeline.sources import Index, Source, recognise
from pipeline.splits import SPLITS, assign, warn_of_thin_splits
from pipeline.verify import quick_check

log = logging.getLogger(__name__)

GOOD_DB = 40.0
MUCH_CLIPPED = 0.001

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
    _refuse_output_within(source, out)
    if (directory / manifest.NAME).exists():
        return directory, _finished(directory, prep, source), True
    found = recognise(source)
    index = assign(_checked(found.index(), found, prep), prep.calib, prep.limit)
    with _lock(directory), _naming(directory):
        if (directory / manifest.NAME).exists():  # another run has finished since
            return directory, _finished(directory, prep, source), True
        _clear_unfinished(directory)
        warn_of_thin_splits(index, prep.calib)
        allowed = max(20, math.ceil(len(index.table) / 1000)) if max_bad is None else max_bad
        run = Run(prep, found, index, directory, allowed)
        with progress("prepare", len(index.table), "images") as advance:
            result = run.write(workers, advance)
        result.save(directory)
    _say_what_to_look_at(directory, result)
    return directory, result, False


def _say_what_to_look_at(directory: Path, result: Manifest) -> None:
    if bad := sum(count["quarantined"] for count in result.counts.values()):
        log.warning("%d images cannot be used; their reasons are in %s", bad, directory / SAMPLES)
    if result.preparation.splits > 1 and result.psnr_db and result.psnr_db < GOOD_DB:
        log.warning(
            "PSNR is %.1f dB, below %g dB: a smaller --step than %g keeps more",
            result.psnr_db,
            GOOD_DB,
            result.preparation.step,
        )
    for plane in result.planes:
        if plane.clipped > MUCH_CLIPPED:
            log.warning(
                "%.2f %% of plane %d is clipped: a larger --step keeps its range",
                100 * plane.clipped,
                plane.k,
            )


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


def _refuse_output_within(source: Path, out: Path) -> None:
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise ConfigError(
            f"--out {out} lies within --source {source}, where shards would be taken for images: "
            "choose another --out"
        )


def _finished(directory: Path, prep: Preparation, source: Path) -> Manifest:
    """The manifest of what is there already; an error if it is not what was asked for."""
    found = manifest.load(directory)
    if found.preparation != prep:
        raise ConfigError(f"{directory} holds another preparation: {found.preparation}")
    if source.resolve() != Path(found.source):
        raise ConfigError(
            f"{directory} was made from {found.source}, not from {source.resolve()}: choose "
            "another --out or another dataset name, or remove the directory first"
        )
    if source.exists():
        _refuse_changed_source(directory, found, source)
    if damaged := quick_check(directory, found):
        raise DamagedError(f"{'; '.join(damaged)}: remove {directory} to prepare it again")
    return found


def _refuse_changed_source(directory: Path, found: Manifest, source: Path) -> None:
    prep = found.preparation
    index = assign(recognise(source).index(), prep.calib, prep.limit)
    if index.fingerprint() != found.fingerprint:
        then = sum(count["indexed"] for count in found.counts.values())
        raise ConfigError(
            f"{source} has changed since {directory} was made from it ({then} images then, "
            f"{len(index.table)} now): remove the directory to prepare it again"
        )


@contextmanager
def _naming(directory: Path) -> Iterator[None]:
    """Libraries raise OSErrors without a place: name the output then."""
    try:
        yield
    except OSError as error:
        if error.filename:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(directory)) from error


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
