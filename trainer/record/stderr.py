"""stderr.log of a run: what its processes said, and, in lines of our own, how it ended."""

from pathlib import Path

NAME = "stderr.log"
_NOTE = "--- "  # how our own lines begin


def path_of(directory: Path, rank: int = 0) -> Path:
    """stderr.log; stderr_1.log and so on for the other processes of a job."""
    return directory / (NAME if rank == 0 else f"stderr_{rank}.log")


def note(path: Path, text: str) -> None:
    """A line of our own."""
    with path.open("a") as file:
        file.write(f"{_NOTE}{text}\n")
