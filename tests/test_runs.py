"""What is known of many runs: their logs, the list, the picture; damaged ones included."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, spectral, spectral_here
from trainer.record import runlog, status
from trainer.record.runlog import Follower, valid_rows
from trainer.record.status import Status
from trainer.reports import plot
from trainer.reports.report import duration

pytestmark = pytest.mark.processes

Row = dict[str, Any]
GROUP = Path("toy", "sub4", "digits+epochs=4")
RESULT = {"shard": 0, "epochs": 4, "steps": 40, "train_seconds": 12.0,
          "calib": {"top1": 0.5}, "val": {"top1": 0.25}}  # fmt: skip


def start(step: int, **other: object) -> Row:
    return {"kind": "start", "step": step, "steps": 40, "epochs": 4, **other}


def trained(step: int, loss: float = 1.0, **other: object) -> Row:
    row = {"kind": "train", "step": step, "epoch": step / 10, "loss": loss, "lr": 0.1}
    return {**row, "images_per_s": 1000.0, **other}


def measured(step: int, top1: float, split: str = "calib") -> Row:
    return {"kind": "eval", "split": split, "step": step, "epoch": step / 10, "top1": top1}


def write(run: Path, rows: list[Row], tail: str = "") -> Path:
    """A log with these rows, a second apart."""
    run.mkdir(parents=True, exist_ok=True)
    now = time.time() - len(rows)
    lines = [json.dumps({"time": now + i, **row}) + "\n" for i, row in enumerate(rows)]
    (run / "log.jsonl").write_text("".join(lines) + tail)
    return run


def listed(root: Path, *words: str) -> dict[int, Row]:
    """What `spectral status --json` says, by shard."""
    done = spectral_here("status", "--runs", root, "--json", *words)
    assert done.returncode == 0, done.stderr
    return {row["shard"]: row for row in json.loads(done.stdout)}


# the log

RESUMED = [start(0), trained(5), trained(10, 0.9), measured(10, 0.3), trained(15), trained(18),
           start(10), trained(15, 0.5), trained(20, 0.4), measured(20, 0.6)]  # fmt: skip


def test_rows_that_a_resumed_run_repeats_count_once(tmp_path: Path) -> None:
    """And a line that a kill cut short, or that is none of ours, is passed over."""
    run = write(tmp_path, RESUMED, '{"time": 1, "kind": "tr\n[1]\n{"kind": 3}\n\xff\n{"kind"')
    rows = [row for row in valid_rows(run / "log.jsonl") if row["kind"] != "start"]
    assert [(row["step"], row.get("loss")) for row in rows] == [
        (5, 1.0), (10, 0.9), (10, None), (15, 0.5), (20, 0.4), (20, None)
    ]  # fmt: skip


def test_a_final_measurement_of_an_earlier_step_voids_nothing(tmp_path: Path) -> None:
    """The best weights may be those of an earlier epoch."""
    rows = [start(0), trained(10), trained(20), measured(10, 0.7, "val")]
    assert len(valid_rows(write(tmp_path, rows) / "log.jsonl")) == 4


def test_logs_without_steps_or_starts_are_read(tmp_path: Path) -> None:
    """An epoch that was logged twice counts once, as it was logged last."""
    row = {"kind": "eval", "split": "calib", "epoch": 1, "top1": 0.5}
    run = write(tmp_path, [trained(10, 3.0), row, trained(20, 2.0), trained(20, 1.0), row])
    rows = valid_rows(run / "log.jsonl")
    assert [(r["kind"], r["step"], r.get("loss")) for r in rows] == [
        ("train", 10, 3.0), ("eval", 10, None), ("train", 20, 1.0), ("eval", 20, None)
    ]  # fmt: skip


def test_a_status_forgets_what_is_void(tmp_path: Path) -> None:
    rows = [start(0), trained(20), measured(20, 0.9), start(10), trained(12, 0.5)]
    found = runlog.status(write(tmp_path, rows) / "log.jsonl")
    assert (found.step, found.steps, found.epochs, found.loss) == (12, 40, 4, 0.5)
    assert found.best("calib") is None
    assert found.seconds_left == pytest.approx(14, abs=0.01)  # 2 steps took 1 s, 28 are left


def bytes_read() -> int:
    """By this process so far, from files in the page cache too."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_the_status_of_a_long_log_is_read_from_its_ends(tmp_path: Path) -> None:
    """Of 9 MB a part; what the first row says is known all the same."""
    rows = [start(0, epochs=70_000)]
    rows += [trained(step, loss=0.5, wait=0.01) for step in range(1, 60_000)]
    path = write(tmp_path, [*rows, measured(59_999, 0.8)]) / "log.jsonl"
    assert path.stat().st_size > 5 << 20
    before = bytes_read()
    found = runlog.status(path)
    assert bytes_read() - before < path.stat().st_size / 4
    assert (found.step, found.steps, found.epochs, found.best("calib")) == (59_999, 40, 70_000, 0.8)


def test_a_follower_reads_only_what_is_new_and_whole(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "log.jsonl")
    assert follower.look().step is None
    write(tmp_path, [start(0), trained(5)], tail='{"kind": "train", "st')
    assert follower.look().step == 5
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('ep": 7}\n')
    assert follower.look().step == 7
    assert follower.look().steps == 40


# the list


def test_the_list_tells_states_apart(tmp_path: Path) -> None:
    group = tmp_path / GROUP
    write(group / "shard_00", RESUMED)
    (group / "shard_00" / "result.json").write_text(json.dumps(RESULT))
    for k in range(1, 5):
        write(group / f"shard_{k:02d}", RESUMED)
    Status(group / "shard_01").update(state="training")
    status.note_failure(group / "shard_02", "no luck")
    Status(group / "shard_04").update(state="stopped")
    found = listed(tmp_path)
    states = {shard: row["state"] for shard, row in found.items()}
    assert list(states) == [*"01234"]
    assert [*states.values()] == ["finished", "running", "failed", "interrupted", "stopped"]
    assert (found["0"]["step"], found["0"]["calib_top1"], found["0"]["val_top1"]) == (40, 0.5, 0.25)
    assert (found["1"]["step"], found["1"]["calib_top1"], found["1"]["val_top1"]) == (20, 0.6, None)
    assert (found["1"]["dataset"], found["1"]["folder"], found["1"]["recipe"]) == GROUP.parts
    assert (found["0"]["seconds"], found["2"]["error"]) == (12.0, "no luck")
    text = spectral_here("status", "--runs", tmp_path).stdout
    assert "toy/sub4, digits+epochs=4" in text
    assert any(
        {"finished", "40/40", "50.00%", "25.00%"} <= set(x.split()) for x in text.split("\n")
    )
    assert "shard_02 failed: no luck" in text


@pytest.mark.parametrize(
    ("changes", "age", "state"),
    [
        ({}, 0, "running"),
        ({"pid": 2**22 - 1}, 0, "interrupted"),  # it was killed
        ({"started": 1e9}, 0, "interrupted"),  # its number is another process' now
        ({"host": "elsewhere"}, 0, "running"),
        ({"host": "elsewhere"}, status.ALIVE + 60, "interrupted"),  # its machine has gone
        ({"state": "starting"}, 0, "running"),
    ],
)
def test_a_run_is_alive_while_its_process_is(
    tmp_path: Path, changes: dict[str, object], age: float, state: str
) -> None:
    run = tmp_path / GROUP / "shard_01"
    write(run, RESUMED)
    Status(run).update(state="training")
    path = run / status.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    os.utime(path, (time.time() - age,) * 2)
    assert listed(tmp_path)["1"]["state"] == state


def test_a_process_that_lives_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "BEAT", 0.01)
    running = Status(tmp_path)
    os.utime(tmp_path / status.NAME, (1e9, 1e9))
    with running.beating():
        end = time.monotonic() + 20
        while status.heard_of(tmp_path) < 2e9 / 2 + 1 and time.monotonic() < end:
            time.sleep(0.01)
    assert status.heard_of(tmp_path) > 1.5e9


def test_a_terminal_that_lacks_a_character_shows_the_list(tmp_path: Path) -> None:
    write(tmp_path / GROUP / "shard_00", [start(0)])
    for encoding in ("latin-1", "ascii"):
        done = spectral("status", "--runs", tmp_path, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert "interrupted" in done.stdout


def test_words_choose(tmp_path: Path) -> None:
    write(tmp_path / GROUP / "shard_00", RESUMED)
    write(tmp_path / "Other" / "sub4" / "x" / "shard_01", RESUMED)
    assert listed(tmp_path, "other").keys() == {"1"}
    assert listed(tmp_path, "sub4", "epochs=4").keys() == {"0"}
    assert listed(tmp_path, "finished") == {}
    assert "no such runs" in spectral_here("status", "--runs", tmp_path, "nothing").stdout
    none = spectral_here("status", "--runs", tmp_path / "none")
    assert none.returncode == 1
    assert "run `spectral train` first" in none.stderr


def test_what_is_damaged_or_foreign_does_not_break_the_list(tmp_path: Path) -> None:
    group = tmp_path / GROUP
    for k, content in enumerate(("{", "[]", '{"epochs": 3}', json.dumps({**RESULT, "val": 1}))):
        write(group / f"shard_{k:02d}", RESUMED)
        (group / f"shard_{k:02d}" / "result.json").write_text(content)
    (group / "shard_04").mkdir()
    (group / "shard_05").write_text("a file")
    (group / "shard_x").mkdir()
    (group / "shard_06").mkdir()
    (group / "shard_06" / "log.jsonl").write_bytes(bytes(range(256)) * 50)
    done = spectral_here("status", "--runs", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    states = {row["shard"]: row["state"] for row in json.loads(done.stdout)}
    assert states == {**dict.fromkeys("0123", "damaged"), "4": "not started", "6": "interrupted"}
    assert done.stderr.count("result.json is damaged: remove it") == 4
    assert done.stderr.count("is no run of this tool") == 2
    assert len(done.stderr.splitlines()) == 6


def test_durations_are_readable() -> None:
    seconds = (None, 0, 12.4, 119, 240, 3 * 3600 + 1200, 2 * 86400 + 4 * 3600)
    assert [duration(s) for s in seconds] == [
        "–", "0 s", "12 s", "119 s", "4 min", "3 h 20 min", "2 d 4 h"
    ]  # fmt: skip


# the picture


def test_the_line_is_a_running_mean_that_reaches_both_ends() -> None:
    """Against a slow twin; a loss that is no number leaves no hole in it."""
    values = np.random.default_rng(1).normal(size=400)
    values[7] = math.nan
    means = plot.smoothed(values)
    for i in (8, 200, 391):  # 400 points: over 8 on each side
        assert means[i] == pytest.approx(np.nanmean(values[i - 8 : i + 9]))
    assert means[0] == pytest.approx(values[:3].mean())
    assert np.isfinite(means).all()
    assert plot.smoothed(np.array([3.0])).tolist() == [3.0]


def test_runs_are_named_by_what_differs() -> None:
    group = Path("/runs/toy/sub4")
    one = [group / "x" / "shard_00", group / "x" / "shard_03"]
    assert plot.names(one) == ["shard 00", "shard 03"]
    assert plot.names([*one, group / "y" / "shard_00"])[1:] == ["x/shard 03", "y/shard 00"]


def test_a_picture_of_several_runs_shows_each(tmp_path: Path) -> None:
    """Its colours are there: a run that is not drawn would be missed."""
    for k in range(2):
        rows = [start(0), *(trained(s, 2 / s) for s in range(1, 41)), measured(40, 0.3 + k / 2)]
        write(tmp_path / GROUP / f"shard_{k:02d}", rows)
    write(tmp_path / GROUP / "shard_02", [])
    png = tmp_path / "new" / "plot.png"
    done = spectral_here("plot", tmp_path, tmp_path / GROUP / "shard_00", "--png", png)
    assert done.returncode == 0, done.stderr
    assert "(2 runs)" in done.stderr
    with Image.open(png) as image:
        colours = {tuple(c) for c in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)} <= colours
    for wrong, message in ((tmp_path / GROUP / "shard_02", "nothing to draw"), (png, "no directo")):
        refused = spectral_here("plot", wrong, "--png", tmp_path / "other.png")
        assert refused.returncode == 1
        assert message in refused.stderr


def test_neither_list_nor_picture_loads_torch(tmp_path: Path) -> None:
    write(tmp_path / GROUP / "shard_00", RESUMED)
    code = (
        "import sys, cli\n"
        f"for words in (['status', '--runs', {str(tmp_path)!r}],"
        f" ['plot', {str(tmp_path)!r}, '--png', {str(tmp_path / 'x.png')!r}]):\n"
        "    cli.main(words, standalone_mode=False)\n"
        "assert not set(sys.modules) & {'torch', 'ffcv', 'numba'}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
