"""The outcome of each sample, kept as a Parquet file, so that classifiers can be compared later
image by image, whatever they were trained on.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamagedError
from pipeline.files import write_whole
from pipeline.format import samples
from trainer.data.selection import Prepared
from trainer.fusion.figures import Outcomes

NAME = "outcomes.parquet"
_SPLIT = b"spectral.split"


def save_outcomes(
    directory: Path,
    data: Prepared,
    split: str,
    labels: NDArray[np.int64],
    found: dict[str, Outcomes],
) -> None:
    """Columns: id, label; `METHOD.class` (the first), `METHOD.top1` (whether it is the label) and
    `METHOD.nll` (nats) of each way to fuse.
    """
    columns: dict[str, Any] = {"id": pa.array(samples.ids(data.directory, split), pa.string())}
    columns["label"] = labels.astype(np.int32)
    for name, outcomes in found.items():
        columns |= {
            f"{name}.class": outcomes.predicted,
            f"{name}.top1": outcomes.top1,
            f"{name}.nll": outcomes.nll,
        }
    table = pa.table(columns).replace_schema_metadata({_SPLIT: split.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(directory / NAME, memoryview(sink.getvalue()))


def read_outcomes(directory: Path, method: str) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Ids in rising order, and whether each was right."""
    path = directory / NAME
    if not path.exists():
        raise ConfigError(f"{directory} was not measured: run `spectral ensemble` on it first")
    try:
        table = pq.read_table(path, columns=["id", f"{method}.top1"])
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{path} cannot be read: {error}; measure again") from error
    table = table.take(pc.sort_indices(table["id"]))
    return np.asarray(table["id"]), np.asarray(table[f"{method}.top1"])
