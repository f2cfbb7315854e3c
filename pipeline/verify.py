"""A prepared directory in, what is damaged in it out."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline import manifest
from pipeline.beton import digest
from pipeline.progress import Advance

ProgressBar = Callable[[str, int, str], AbstractContextManager[Advance]]


def verify(directory: Path, progress: ProgressBar) -> list[str]:
    """Re-read every file against the recorded sizes and digests; one line per damaged file."""
    recorded = manifest.load(directory).files
    damaged = []
    with progress("verify", sum(entry["size"] for entry in recorded.values()), "bytes") as advance:
        for name, entry in recorded.items():
            if problem := _problem(directory / name, entry["size"], entry["digest"]):
                damaged.append(f"{directory / name}: {problem}")
            advance(entry["size"], f"{len(damaged)} damaged")
    return damaged


def quick_check(directory: Path, found: manifest.Manifest) -> list[str]:
    """Files that are missing or of another size, without reading them."""
    problems = []
    for name, entry in found.files.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != entry["size"]:
            problems.append(f"{path} has {path.stat().st_size} bytes, not {entry['size']}")
    return problems


def _problem(path: Path, size: int, recorded: str) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes, {size} were written"
        return None if digest(path) == recorded else "its content has changed (digest differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
