"""Reads who is who in a prepared directory: samples.parquet, one row a sample."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import DamagedError

NAME = "samples.parquet"
WRITTEN, QUARANTINED = "written", "quarantined"


def ids(directory: Path, split: str) -> NDArray[np.object_]:
    """The id of each stored sample of a split, in the order of its shards. DamagedError."""
    path = directory / NAME
    found = []
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id", "split", "status"]):
                stored = np.asarray(batch["split"].cast(pa.string())) == split
                stored &= np.asarray(batch["status"].cast(pa.string())) == WRITTEN
                found.append(np.asarray(batch["id"])[stored])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DamagedError(f"{path} is damaged, or no Parquet file: copy it again") from error
    return np.concatenate(found) if found else np.empty(0, np.object_)
