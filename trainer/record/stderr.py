"""stderr.log of a run: what its processes said, and, in lines of our own, how it ended."""

from pathlib import Path

NAME = "stderr.log"
_NOTE = "--- "  # how our own lines begin
_QUOTED = 1 << 16  # bytes at the end of what a process said in which its error is looked for


def path_of(directory: Path, rank: int = 0) -> Path:
    """stderr.log; stderr_1.log and so on for the other processes of a job."""
    return directory / (NAME if rank == 0 else f"stderr_{rank}.log")


def note(path: Path, text: str) -> None:
    """A line of our own."""
    with path.open("a") as file:
        file.write(f"{_NOTE}{text}\n")


def last_error(path: Path, start: int) -> str:
    """Of what was said from byte `start` on the last line that begins with `Error: `, else the last
    one; nothing where nothing was said.
    """
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - _QUOTED))
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    return (errors or [line.strip() for line in lines if line.strip()] or [""])[-1]
