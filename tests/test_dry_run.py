"""What is said and refused before anything is trained, and that nothing is written for it."""

import re
from pathlib import Path

import pytest

from tests.conftest import SUB4
from tests.test_train import train


def test_a_dry_run_says_what_would_be_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    done = train(data / SUB4, tmp_path / "runs", "--shard", 2, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "cifar-resnet8 on 3×16×16, 3 classes: 19," in done.stdout
    assert "15 steps, 5 an epoch, 3.0 epochs" in done.stdout
    assert "learning rate by step: 0: 0.000667" in done.stdout
    assert "memory about" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("augment.policy=trivialaugment", "augment.policy = trivialaugment: for whole images"),
        ("augment.shift=16", "augment.shift = 16: planes have 16 px here"),
        ("augment.cutout=17", "augment.cutout = 17: planes have 16 px here"),
    ],
)
def test_what_planes_cannot_give_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, setting: str, said: str, options: tuple[str, ...]
) -> None:
    runs = tmp_path / "runs"
    done = train(data / SUB4, runs, "--shard", "all", "--set", setting, *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert not runs.exists()


def test_a_network_that_cannot_fit_is_refused_at_once(data: Path, tmp_path: Path) -> None:
    width = "model_args.width=100000000"
    done = train(data / SUB4, tmp_path / "runs", "--shard", 0, "--set", width, "--dry-run")
    assert done.returncode == 1
    assert "network cifar-resnet8: its weights alone take " in done.stderr


def test_a_dry_run_reckons_memory_for_the_whole_batch(data: Path, tmp_path: Path) -> None:
    """From a few images; averaged weights count too."""
    said = {}
    for settings in ((), ("--set", "ema=0.9"), ("--set", "batch_size=32")):
        done = train(data / SUB4, tmp_path / "runs", "--shard", 0, *settings, "--dry-run")
        found = re.findall(
            r"(weights and gradients|averaged weights|pass) ([\d.]+) MB", done.stdout
        )
        said[settings] = {name: float(size) for name, size in found}
    plain, averaged, double = said.values()
    assert averaged == {
        **plain,
        "averaged weights": pytest.approx(plain["weights and gradients"] / 2, abs=0.06),
    }
    assert double["pass"] == pytest.approx(2 * plain["pass"], rel=0.2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("schedule.warmup_epochs=3",), "the rate is still rising: warmup_epochs = 3"),
        (("schedule.name=sgdr",), "the first period does not end: period_epochs = 30"),
        (
            ("schedule.name=multistep", "schedule.milestones=[1,3]"),
            "never reached: milestones = [3.0]",
        ),
        (("schedule.name=multistep", "schedule.milestones=[1,2]"), ""),
    ],
)
def test_a_schedule_that_a_run_is_too_short_for_is_said(
    data: Path, tmp_path: Path, settings: tuple[str, ...], said: str
) -> None:
    words = [f"--set={setting}" for setting in ("schedule.warmup_epochs=0", *settings)]
    done = train(data / SUB4, tmp_path / "runs", "--shard", 2, "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    assert (f"at the end of 3 epochs {said}" in done.stdout) == bool(said)
    assert ("at the end of 3 epochs" in done.stdout) == bool(said)


def test_a_batch_of_more_than_there_is_is_said(data: Path, tmp_path: Path) -> None:
    few = train(data / SUB4, tmp_path / "runs", "--shard", 2, "--dry-run", "--set=batch_size=9999")
    assert few.returncode == 0, few.stderr
    assert re.search(r"batches are of all \d+ samples of train: batch_size = 9999", few.stdout)
