"""Jobs that share a GPU: the service that lets their kernels run at once, where there is one."""

import os
import stat
from pathlib import Path

import pytest

from trainer.process.mps import CONTROL, shared_gpus

STAND_IN = """#!/bin/sh
# Does what the real one does, as far as a process can see: a daemon with a pipe, and commands.
if [ "$1" = "-d" ]; then
    [ -n "$BROKEN" ] && { echo "no CUDA-capable device is detected" >&2; exit 1; }
    touch "$CUDA_MPS_PIPE_DIRECTORY/control"
    echo started >> "$STORY"
    exit 0
fi
[ -e "$CUDA_MPS_PIPE_DIRECTORY/control" ] || exit 1
read command
echo "$command" >> "$STORY"
"""

CLIENT = """
import os
assert os.path.exists(os.environ["CUDA_MPS_PIPE_DIRECTORY"] + "/control")
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """With a stand-in for the service's program on PATH."""
    program = tmp_path / CONTROL
    program.write_text(STAND_IN)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STORY": str(tmp_path / "story")}


def test_a_daemon_of_our_own_lasts_as_long_as_the_jobs(environ: dict[str, str]) -> None:
    story = Path(environ["STORY"])
    with shared_gpus(environ, CLIENT) as own:
        assert set(own) == {"CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"}
        assert all(Path(path).is_dir() for path in own.values())
        assert story.read_text().split() == ["started"]
    assert story.read_text().split() == ["started", "quit"]
    assert not any(Path(path).exists() for path in own.values())


def test_where_there_is_none_jobs_take_turns_and_it_is_said(
    environ: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with shared_gpus({"PATH": str(tmp_path / "empty")}) as own:
        assert own == {}
    assert f"{CONTROL} is not on this machine's PATH" in caplog.text
    with shared_gpus({**environ, "BROKEN": "yes"}) as own:
        assert own == {}
    assert f"{CONTROL}: no CUDA-capable device is detected" in caplog.text
    with shared_gpus(environ, "raise SystemExit('cuInit')") as own:  # it serves nobody
        assert own == {}
    assert f"{CONTROL}: cuInit" in caplog.text
    assert Path(environ["STORY"]).read_text().split()[-1] == "quit"


def test_a_service_that_runs_already_is_used_and_left_alone(environ: dict[str, str]) -> None:
    with shared_gpus({**environ, "CUDA_MPS_PIPE_DIRECTORY": "/tmp/theirs"}) as own:
        assert own == {}
    assert not Path(environ["STORY"]).exists()
