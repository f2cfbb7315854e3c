"""Writes a folder that is whole or absent, whatever happens meanwhile."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError, refuse_undecodable
from pipeline.files import sync_directory


def check_free(directory: Path) -> None:
    """ConfigError, before any work, where something is in the way."""
    refuse_undecodable(directory, ConfigError)
    if directory.exists() or directory.is_symlink():
        raise ConfigError(f"{directory} is there already: remove it, or name another folder")
    if directory.name in ("", ".."):
        raise ConfigError(f"{directory} names no new folder")


@contextmanager
def whole_folder(directory: Path) -> Iterator[Path]:
    """A folder beside it to write into, which takes its name at the end; it is removed when that is
    not reached, or by the next one if the process was killed.
    """
    check_free(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in partial.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        sync_directory(partial)
        check_free(directory)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_directory(directory.parent)
