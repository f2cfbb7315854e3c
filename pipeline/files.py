"""Content in, a file that is whole or absent out, after a power cut too."""

import errno
import json
import math
import os
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

_WHOLE = re.compile(rb"[ \t\r\n]*-?[0-9]{1,18}[ \t\r\n]*")


def from_json(text: str | bytes) -> Any:
    """What a JSON text says; ValueError for what is none, or too deeply nested to be anybody's."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def whole_number(text: str | bytes) -> int:
    """Of ASCII digits, with white space around and a minus before them; ValueError for all else
    that `int` takes: 1_0, +1, digits of other scripts.
    """
    data = text.encode() if isinstance(text, str) else text
    if not _WHOLE.fullmatch(data):
        raise ValueError(f"no whole number: {text[:40]!r}")
    return int(data)


def fits(value: Any, kind: Any) -> bool:
    """Whether what was read from JSON is of a type, as in annotations. kind: also a dictionary of
    types by key, which are all there. Of a dataclass keys may be missing.
    """
    if is_dataclass(kind):
        known = get_type_hints(kind)
        return fits(value, dict) and all(k in known and fits(v, known[k]) for k, v in value.items())
    if isinstance(kind, dict):
        return (
            fits(value, dict)
            and value.keys() == kind.keys()
            and all(fits(value[key], kind[key]) for key in kind)
        )
    inner = get_args(kind)
    if get_origin(kind) is dict:
        return fits(value, dict) and all(fits(v, inner[1]) for v in value.values())
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(v, inner[0]) for v in value)
    if inner:  # a union
        return any(fits(value, one) for one in inner)
    if kind in (int, float):
        if isinstance(value, float):
            return kind is float and math.isfinite(value)
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return kind is Any or isinstance(value, kind)


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


def write_at(fd: int, data: bytes | bytearray | memoryview, at: int, path: Path) -> None:
    """Until all of it is written: short writes happen, on a disk that fills up too. path: of `fd`,
    for an error to name.
    """
    view = memoryview(data)
    while len(view):
        try:
            written = os.pwrite(fd, view, at)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        view, at = view[written:], at + written


def open_lock(path: Path) -> int:
    """The descriptor of a lock file, which is made where there is none. What a link of its name
    leads to is somebody's file, or nothing.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        said = "a symbolic link, where a lock file belongs: remove it"
        raise OSError(error.errno, said, str(path)) from error


def make_directory(directory: Path) -> None:
    """With all that it lies in; also after a power cut."""
    new = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync_directory(folder.parent)


def sync_directory(directory: Path) -> None:
    """Make new names within `directory` survive a power cut."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
