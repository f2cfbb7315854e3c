"""Every error that a user can cause; the command line turns each into one line and a status."""

import errno
import os
import signal
from collections.abc import Sequence
from pathlib import Path

SHOWN = 5  # of many names
_OUT_OF_MEMORY = (
    "memory ran out{why}: close other programs, use fewer --workers, or raise the limit (`ulimit "
    "-v`, or that of the container)"
)
# What libraries say, in errors of many types, when the system gives them no memory
_SIGNS = (
    "failed to map segment",
    "cannot allocate memory",
    "can't start new thread",
    "bad_alloc",
    "failed to launch worker thread",
)
_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space, then run the same command again",
    errno.EDQUOT: "the quota is used up: free some space, then run the same command again",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EACCES: "permission denied: mend its permissions, or choose another place",
    errno.EFBIG: "too large for the file system or for `ulimit -f`: raise the limit",
    errno.ENOMEM: _OUT_OF_MEMORY.format(why=""),
    errno.EMFILE: "too many open files: raise `ulimit -n`",
}


def describe(error: OSError) -> str:
    """An error of the machine in one line: where, what, and what to do."""
    what = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return f"{error.filename}: {what}" if error.filename else what


def out_of_memory(error: BaseException) -> str | None:
    """What to say if an error comes of a lack of memory, whatever it was taken for on its way."""
    found: BaseException | None = error
    while found is not None:
        said = str(found).partition("\n")[0]
        if isinstance(found, MemoryError) or any(sign in said.lower() for sign in _SIGNS):
            return _OUT_OF_MEMORY.format(why=f" ({said})" if said else "")
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return None


class SpectralError(Exception):
    """Base of the family. The message says what is wrong, where, and what to do."""

    exit_status = 1


class ConfigError(SpectralError):
    """An option, recipe key or dataset name that cannot be used."""


class SourceError(SpectralError):
    """A source that is missing, empty, not recognised, or too damaged to use."""


class BadImageError(SpectralError):
    """An image that cannot be used; the message is the reason kept in samples.parquet."""


class DamagedError(SpectralError):
    """A file of ours that does not hold what it should."""


class WorkerError(SpectralError):
    """A worker process that died or met an error of the machine (disk, memory, permission)."""


class OutputError(SpectralError, BrokenPipeError):
    """Standard output that takes no more; without a message where its reader has gone. A broken
    pipe too, as work that goes on without a reader also goes on without such a disk.
    """


class StoppedError(BaseException):
    """Stopped by a signal after everything was saved: the same command goes on (EX_TEMPFAIL).

    As KeyboardInterrupt no Exception: it is raised wherever the signal came, and no `except
    Exception` around a damaged input may take it for damage.
    """

    exit_status = 75
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # NCCL may take USR1 for its own


def escaped(name: str | Path) -> str:
    r"""A path for people: bytes that are not UTF-8 as `\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    r"""On one line and without control characters, which become `\n`, `\x1b` and the like."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def printable_lines(text: str) -> str:
    """The same of each line of a message: a name in it may hold what controls a terminal."""
    return "\n".join(map(printable, text.split("\n")))


def refuse_undecodable(path: str | Path, kind: type[SpectralError]) -> None:
    """An error for a path that is not UTF-8, as names are kept in files that are. (Python has
    surrogates for such bytes.)
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise kind(f"the name {escaped(path)} is not valid UTF-8: rename it") from error


def first_few(names: Sequence[str], count: int | None = None) -> str:
    """The first few, and how many more there are. count: of all, where the others are not kept."""
    shown, count = ", ".join(map(printable, names[:SHOWN])), count or len(names)
    return shown if count <= SHOWN else f"{shown} and {count - SHOWN} more"
