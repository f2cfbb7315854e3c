"""`spectral prepare`: a source and a preparation in, a finished directory of shards out."""

import errno
import fcntl
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import __version__
from pipeline.catalogue import catalogue
from pipeline.choices import IMAGE_SECONDS
from pipeline.errors import ConfigError, DamagedError, refuse_undecodable
from pipeline.files import make_directory, open_lock
from pipeline.format import manifest
from pipeline.format.manifest import Manifest
from pipeline.format.parts import FOLDER
from pipeline.preparation import Preparation
from pipeline.progress import ProgressBar, Watch
from pipeline.sources import Source, recognise
from pipeline.sources.splits import refuse_unknown_choices
from pipeline.stage import run
from pipeline.stage.owned import JOURNAL, LOCK, refuse_foreign, remove, remove_journal
from pipeline.stage.resume import SAME, changed_places, counted, difference, scan, take_up_index
from pipeline.stage.run import Plan
from pipeline.stage.statistics import conclude
from pipeline.stage.verify import quick_check

log = logging.getLogger(__name__)

GOOD_DB = 40.0
MUCH_CLIPPED = 0.001
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has made. existed: whether it was there already."""

    directory: Path
    manifest: Manifest
    existed: bool


def prepare(
    prep: Preparation,
    source: Path,
    out: Path,
    *,
    workers: int,
    max_bad: int | None,
    progress: ProgressBar,
    overwrite: bool = False,
    image_seconds: float = IMAGE_SECONDS,
) -> Prepared:
    """Write the shards of `source`, or go on where an interrupted run left off.

    max_bad: quarantined images that are tolerated; None: 0.1 % of all, but at least 20.
    image_seconds: an image that takes longer is quarantined, too.
    overwrite: remove what is there first, finished or not.
    """
    refuse_unknown_choices(prep)
    directory = prep.directory(out)
    refuse_undecodable(directory, ConfigError)
    for path in (source, source.resolve()):
        refuse_undecodable(path, ConfigError)
    refuse_overlap(source, directory)
    if (directory / manifest.NAME).exists() and not overwrite:
        return Prepared(directory, finished(directory, prep, source, progress), True)
    with Watch() as watch:
        watch.begin(f"looking at {source}")
        found = recognise(source)
    _say_unusual_layout(prep, found)
    refuse_foreign(directory)
    if (directory / FOLDER).exists() and not overwrite:
        raise ConfigError(
            f"{directory} was begun in parts: go on with --part and `spectral merge`, or "
            "--overwrite to start over"
        )
    with locked(directory), _naming(directory):
        if overwrite:
            remove(directory)
        existed = (directory / manifest.NAME).exists()  # another run may have finished since
        if not existed:
            result = _write(prep, found, directory, workers, max_bad, image_seconds, progress)
            remove_journal(directory)
    if existed:
        return Prepared(directory, finished(directory, prep, source, progress), True)
    _say_what_to_look_at(directory, result)
    return Prepared(directory, result, False)


def _write(
    prep: Preparation,
    source: Source,
    directory: Path,
    workers: int,
    max_bad: int | None,
    image_seconds: float,
    progress: ProgressBar,
) -> Manifest:
    made_by = versions()
    index = take_up_index(prep, source, directory, made_by, progress)
    rows = index.summary.rows
    allowed = allowed_bad(rows, max_bad)
    plan = Plan(prep, index, directory, workers, allowed, image_seconds)
    with progress("prepare", rows, "images") as advance:
        result = run.write(plan, advance)
    found = conclude(prep, index, result, source.layout, made_by)
    found.save(directory)
    return found


def allowed_bad(rows: int, max_bad: int | None) -> int:
    """How many images of so many rows may be unusable."""
    return max(20, math.ceil(rows / 1000)) if max_bad is None else max_bad


def _say_unusual_layout(prep: Preparation, source: Source) -> None:
    """A data set comes in some layouts and not in others: perhaps it is another one."""
    spec = catalogue().get(prep.dataset)
    if spec is not None and source.layout not in spec.layouts:
        log.warning(
            "%s is laid out as %s, in which %s does not come (but %s): is it the right source?",
            source.root, source.layout, prep.dataset, ", ".join(spec.layouts),
        )  # fmt: skip


def _say_what_to_look_at(directory: Path, result: Manifest) -> None:
    if bad := sum(count["quarantined"] for count in result.counts.values()):
        log.warning(
            "%d images cannot be used: `spectral inspect %s --bad` lists them", bad, directory
        )
    clipped = any(plane.clipped > MUCH_CLIPPED for plane in result.planes)
    if (
        result.psnr_db
        and result.psnr_db < GOOD_DB
        and result.preparation.splits > 1
        and not clipped
    ):
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


def refuse_overlap(source: Path, directory: Path) -> None:
    """Shards would be taken for images, or images be in the way of shards."""
    there, here = source.resolve(), directory.resolve()
    if there in (here, *here.parents) or here in there.parents:
        raise ConfigError(
            f"{directory}, where the shards go, and --source {source} lie within each other: "
            "choose another --out"
        )


def finished(directory: Path, prep: Preparation, source: Path, progress: ProgressBar) -> Manifest:
    """The manifest of what is there already; an error if it is not what was asked for."""
    found = manifest.load(directory)
    then = {"preparation": asdict(found.preparation), "source": found.source}
    asked = {"preparation": asdict(prep), "source": _root(source, Path(found.source))}
    if changes := difference(then, asked):
        raise ConfigError(
            f"{directory} is finished and was made otherwise: {changes}. Choose another --out or "
            "another dataset name, or --overwrite"
        )
    if source.exists() and changed_places(Path(found.source), found.origin):
        _refuse_changed_source(directory, found, source, progress)
    if damaged := quick_check(directory, found):
        raise DamagedError(f"{'; '.join(damaged)}: --overwrite prepares it again")
    if (directory / JOURNAL).exists():  # a run was killed in its very last moment
        with locked(directory):
            remove_journal(directory)
    return found


def _root(source: Path, recorded: Path) -> str:
    """What the user named, resolved; the recorded archive if it lies alone in that folder."""
    alone = recorded.parent == source.resolve() and not recorded.is_dir()
    return str(recorded if alone else source.resolve())


def _refuse_changed_source(
    directory: Path, found: Manifest, source: Path, progress: ProgressBar
) -> None:
    """Dates differ: look whether the images do."""
    with locked(directory), _fresh(directory / JOURNAL) as folder:
        now = scan(found.preparation, recognise(source), folder, progress).summary
    if now.fingerprint != found.fingerprint:
        then = {split: count["indexed"] for split, count in found.counts.items()}
        raise ConfigError(
            f"{source} has changed since {directory} was made from it: "
            f"{counted(then, now.counts)}. --overwrite prepares it again"
        )
    log.warning(SAME, source)


@contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """An empty folder that is removed at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory` against a second run; a crash releases it."""
    try:
        make_directory(directory)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"{directory} cannot be made, as a file is in the way: choose another --out"
        ) from error
    with os.fdopen(open_lock(directory / LOCK)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another run is at work on {directory}: wait for it") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise ConfigError(
                f"{directory / LOCK} cannot be locked ({error.strerror}): its file system has no "
                "flock, which keeps a second run away. Choose an --out on another one, such as a "
                "local disk, and copy the result; or have it mounted with locks (Lustre: -o flock "
                "or localflock; NFS: without nolock, and with lockd running)"
            ) from error
        yield


def versions() -> dict[str, str]:
    """What decides on the bytes of a shard, beside the options."""
    import PIL
    from PIL import features

    from pipeline.format.zstd import zstd_version

    libraries = {name: str(features.version(name)) for name in ("libjpeg_turbo", "webp")}
    own = {"spectral": __version__, "pillow": PIL.__version__, "zstd": zstd_version()}
    return {**own, **libraries}
