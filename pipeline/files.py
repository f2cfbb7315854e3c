"""Content in, a file that is whole or absent out, after a power cut too."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write beside, sync, rename."""
    write_beside(path, content).replace(path)


def write_beside(path: Path, content: bytes | memoryview) -> Path:
    """Write and sync a file that is still to be renamed to `path`."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(partial)) from error
    return partial


def write_json(path: Path, content: dict[str, Any]) -> None:
    """As indented JSON."""
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def sync_directory(directory: Path) -> None:
    """Make renames within `directory` survive a power cut."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
