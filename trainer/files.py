"""Content in, a file that is whole or absent out."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write beside, sync, rename."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """As indented JSON."""
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
