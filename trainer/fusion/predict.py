"""Classifies image files, and writes what it found for people or for programs."""

import csv
import glob
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.errors import ConfigError, SourceError
from trainer.export.artefact import CONFIG
from trainer.fusion.classifier import FusedClassifier, Guess
from trainer.fusion.ensemble import NAME

_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
             ".ppm", ".pgm", ".avif"}  # fmt: skip  # in folders; a file that is named may have any
Found = list[Guess] | SourceError
ProgressBar = Callable[[str, int, str], AbstractContextManager[Callable[[int, str], None]]]


def find_images(arguments: Iterable[str]) -> list[Path]:
    """Files as they are named; images in folders and below, by name; patterns that the shell left
    alone; `-`: names from standard input, a line each. SourceError for a folder without images.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if argument == "-":
            found += [Path(line) for line in sys.stdin.read().splitlines() if line]
        elif path.is_dir():
            within = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
            if not within:
                raise SourceError(f"{path} holds no images ({', '.join(sorted(_SUFFIXES))})")
            found += [p for p in within if p.is_file()]
        elif not path.exists() and glob.has_magic(argument):
            matched = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - it may be absolute
            if not matched:
                raise SourceError(f"nothing matches {argument}")
            found += [Path(name) for name in matched if not Path(name).is_dir()]
        else:
            found.append(path)
    if not found:
        raise SourceError("no images were named")
    return found


def predictions(
    classifier: FusedClassifier,
    images: Sequence[Path],
    top: int,
    batch_size: int,
    progress_bar: ProgressBar,
) -> Iterator[tuple[Path, Found]]:
    """Each image with its classes, or the error that it met; in the order given."""
    with progress_bar("predict", len(images), "images") as advance:
        each = classifier.classify_each(images, top=top, batch_size=batch_size)
        for path, found in zip(images, each, strict=True):
            yield path, found
            advance(1, "")


def lines(found: Iterable[tuple[Path, Found]], form: str, top: int) -> Iterator[str]:
    """In one of the forms `table`, `csv`, `jsonl`. Every image has a row, one that was not
    classified with its error.
    """
    if form == "csv":
        names = [f"{what}_{i}" for i in range(1, top + 1) for what in ("class", "probability")]
        yield _csv(["image", *names, "error"])
    for path, guesses in found:
        if form == "jsonl":
            yield json.dumps({"image": str(path), **_row(guesses)})
        elif form == "csv":
            cells: list[str] = []
            error = str(guesses) if isinstance(guesses, SourceError) else ""
            for guess in [] if isinstance(guesses, SourceError) else guesses:
                cells += [guess.label, f"{guess.probability:.6f}"]
            yield _csv([str(path), *cells, *[""] * (2 * top - len(cells)), error])
        else:
            yield str(path)
            if isinstance(guesses, SourceError):
                yield "  not classified, see below"
            else:
                yield from (f"  {guess.probability:7.2%}  {guess.label}" for guess in guesses)


def _row(found: Found) -> dict[str, object]:
    if isinstance(found, SourceError):
        return {"error": str(found)}
    return {"classes": [{"class": g.label, "probability": g.probability} for g in found]}


def _csv(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def select_classifier(runs: Path, dataset: str | None, recipe: str | None) -> Path:
    """The group of runs with an ensemble.json that fits; `runs` itself may be one, a run, or a
    folder that `spectral export` wrote.
    """
    if any((runs / name).exists() for name in (NAME, "result.json", CONFIG)):
        return runs
    groups = sorted(path.parent for path in runs.glob(f"{dataset or '*'}/*/*/{NAME}"))
    exact = [group for group in groups if recipe is None or group.name == recipe]
    fitting = exact or [group for group in groups if group.name.startswith(recipe or "")]
    if len(fitting) == 1:
        return fitting[0]
    every = sorted(path.parent for path in runs.glob(f"*/*/*/{NAME}"))
    if not every:
        raise ConfigError(f"no fused classifier in {runs}: run `spectral ensemble` first")
    listed = "\n  ".join(f"--runs {group}" for group in fitting or every)
    raise ConfigError(
        f"{len(fitting) or 'none'} of {len(every)} fused classifiers in {runs} fit; choose one of"
        f"\n  {listed}"
    )
