"""The processes of `spectral prepare`, and what passes between them and their parent."""

import io
import signal
from pathlib import Path

import numpy as np
import pytest

from pipeline.preparation import preparation
from pipeline.sources.index import Container, Index, Place, Summary
from pipeline.stage.blame import Verdicts
from pipeline.stage.messages import Task
from pipeline.stage.pool import Pool
from tests.conftest import photograph

pytestmark = pytest.mark.processes

IMAGES, TASKS = 100, 4


@pytest.fixture
def patience() -> object:
    """A minute, then an error, wherever the test is."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("patience")
def test_large_tasks_and_large_answers_pass_each_other(tmp_path: Path) -> None:
    """Both are larger than what a pipe takes: neither side may wait until the other has read."""
    file = io.BytesIO()
    photograph(np.random.default_rng(0), 64, 64).save(file, "JPEG")
    data = [file.getvalue() + bytes(20_000 + i) for i in range(IMAGES)]
    prep = preparation("toy", 1, size=64, codec="raw")
    places = [Place(0, "", i, 0) for i in range(IMAGES)]
    ids = [f"train/a/{i}.jpg" for i in range(IMAGES)]
    tasks = [Task(i, places, [False] * IMAGES, IMAGES, ids, data=list(data)) for i in range(TASKS)]
    index = Index(tmp_path, tmp_path, Summary(containers=[Container("x.tar.gz", "gzip")]))
    with (
        Verdicts(tmp_path) as verdicts,
        Pool(prep, index, 1, slot_bytes=4096, verdicts=verdicts) as pool,
    ):
        found = [(beside, chunk) for beside, chunk, _ in pool.run(zip(tasks, "abcd", strict=True))]
    chunks = [chunk for _, chunk in found]
    assert [beside for beside, _ in found] == list("abcd")
    assert [chunk.number for chunk in chunks] == list(range(TASKS))
    assert all(len(chunk.inline or b"") > IMAGES * 64 * 64 * 3 for chunk in chunks)
