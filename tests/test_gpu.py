"""What only a GPU can show; all of it is left out without one."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.format import manifest
from tests.conftest import RAW, SUB4, WHOLE
from trainer.data.feed import feed
from trainer.data.loader import ShardLoader
from trainer.data.selection import Prepared

pytestmark = pytest.mark.gpu
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def prepared(root: Path, folder: str) -> Prepared:
    return Prepared(root / folder, manifest.load(root / folder))


def seen(batches: Iterable[tuple[Tensor, Tensor]], behind: Tensor | None = None) -> Tensor:
    """(n, values and label), on the CPU; with `behind` the device lags far behind the loader."""
    found = []
    for values, labels in batches:
        if behind is not None:
            for _ in range(10):
                torch.mm(behind, behind)
        found.append(torch.cat([values.flatten(1).long(), labels[:, None]], dim=1))
    return torch.cat(found).cpu()


@pytest.mark.parametrize("folder", [SUB4, RAW, WHOLE])
def test_the_device_sees_what_lies_on_disk(data: Path, folder: str) -> None:
    """FFCV decodes into the same pinned buffers again and again: not before they are copied."""
    source = prepared(data, folder)
    order = np.resize(np.random.default_rng(1).permutation(90), 2000)
    expected = seen(ShardLoader(source, "train", 0, batch_size=8, device=CPU).batches(order))
    behind = torch.randn(4096, 4096, device=CUDA).bfloat16()
    loader = ShardLoader(source, "train", 0, batch_size=8, device=CUDA)
    for _ in range(3):
        assert seen(loader.batches(order), behind).equal(expected)
    assert seen(feed(loader, "resident", False).batches(order), behind).equal(expected)
