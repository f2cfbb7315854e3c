"""Every error that a user can cause; `cli.py` turns each into one line and exit status 1."""


class SpectralError(Exception):
    """Base of the family. The message says what is wrong, where, and what to do."""


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
