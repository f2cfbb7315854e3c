"""stderr.log of a run: what its processes said, and, in lines of our own, how it ended."""

import os
from pathlib import Path

NAME = "stderr.log"
FAILED = "failed: "
_NOTE = "--- "  # how our own lines begin
_LAST = 1 << 16  # bytes at its end in which the last line is looked for


def path_of(directory: Path, rank: int = 0) -> Path:
    """stderr.log; stderr_1.log and so on for the other processes of a job."""
    return directory / (NAME if rank == 0 else f"stderr_{rank}.log")


def note(path: Path, text: str) -> None:
    """A line of our own."""
    with path.open("a") as file:
        file.write(f"{_NOTE}{text}\n")


def note_failure(directory: Path, error: Exception) -> None:
    """For `spectral runs`, of a run without a launcher."""
    note(path_of(directory), f"{FAILED}{error}")


def failure(directory: Path) -> str | None:
    """What a run failed with, if that is the last that was said."""
    path = path_of(directory)
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST))
        last = file.read().decode(errors="replace").strip().rpartition("\n")[2]
    return last.removeprefix(_NOTE + FAILED) if last.startswith(_NOTE + FAILED) else None
