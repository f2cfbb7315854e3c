"""Tables of MATLAB files: read as SciPy reads them, also those that MATLAB wrote for its tests."""

import io
from pathlib import Path

import numpy as np
import pytest
import scipy.io.matlab
from scipy.io import loadmat, savemat

from pipeline.sources.containers.matlab import table

REAL = sorted(Path(scipy.io.matlab.__file__).parent.glob("tests/data/teststruct*_[678]*.mat"))


def expected(data: bytes, name: str) -> list[dict[str, object]]:
    """Texts and first numbers, as SciPy reads them."""
    rows = np.atleast_1d(loadmat(io.BytesIO(data), squeeze_me=False)[name]).ravel(order="F")
    found = []
    for row in rows:
        values = {}
        for field in rows.dtype.names:
            value = row[field]
            if value.dtype.kind == "U":
                values[field] = str(value[0]) if value.size else ""
            elif value.dtype.kind in "iufc" and value.size:
                values[field] = float(value.ravel(order="F")[0].real)
            else:
                values[field] = None
        found.append(values)
    return found


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_files_that_matlab_has_written(path: Path) -> None:
    data = path.read_bytes()
    name = path.stem.partition("_")[0]
    assert table(data, name) == expected(data, name)


def test_there_are_such_files() -> None:
    assert {"teststruct_6.1_SOL2", "teststruct_7.4_GLNX86"} <= {path.stem for path in REAL}
    assert {path.read_bytes()[126:128] for path in REAL} == {b"MI", b"IM"}


@pytest.mark.parametrize("packed", [True, False])
def test_a_table_as_that_of_the_devkit(packed: bool) -> None:
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("children", object)]
    rows = [(i, f"n{i:08d}", "Åland, x" * i, np.arange(i)) for i in range(1, 1861)]
    file = io.BytesIO()
    synsets = np.array(rows, dtype=kinds).reshape(-1, 1)
    savemat(file, {"other": [1, 2], "synsets": synsets}, do_compression=packed)
    found = table(file.getvalue(), "synsets")
    assert found == expected(file.getvalue(), "synsets")
    assert found[1] == {
        "ILSVRC2012_ID": 2, "WNID": "n00000002", "words": "Åland, xÅland, x", "children": 0
    }  # fmt: skip


def test_what_is_no_table() -> None:
    file = io.BytesIO()
    savemat(file, {"synsets": [1, 2, 3]})
    with pytest.raises(KeyError):
        table(file.getvalue(), "synsets")
    for data in (b"", b"x" * 500, file.getvalue()[:150]):
        with pytest.raises((ValueError, KeyError)):
            table(data, "synsets")
