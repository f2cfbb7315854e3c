"""A plan: made from a pilot, read and changed by people, followed by training."""

import json
import tomllib
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from tests.conftest import SUB4, spectral_here
from trainer.fusion.plan import Worth, allocate, worth_of_each
from trainer.fusion.weights import Answers
from trainer.recipes.plan import PlannedRun, TrainingPlan, read_plan

SETTINGS = ("--set", "batch_size=16", "--set", "model_args.width=8")


def worth(shard: str, top1: float, weight: float, rise: float = 1.0) -> Worth:
    return Worth(shard, top1, weight, rise, 0.1)


def test_epochs_are_shared_by_weight_and_add_up() -> None:
    worths = [worth("0", 0.5, 0.4), worth("1", 0.7, 0.9), worth("2", 0.3, 0.2),
              worth("3", 0.6, 0.6, rise=0.1)]  # fmt: skip
    runs = allocate(worths, 20)
    assert runs == (PlannedRun("1", 10), PlannedRun("0", 7, "1"), PlannedRun("2", 3, "1"))
    for epochs in range(1, 9):
        runs = allocate(worths, epochs)
        assert sum(run.epochs for run in runs) == epochs
        assert min(run.epochs for run in runs) >= 1
    assert allocate([worth("0", 0.9, 1.0), worth("1", 0.2, 0.0, 0.0)], 5) == (PlannedRun("0", 5),)


def test_what_a_network_adds_is_told_from_chance() -> None:
    """Two that know different things, and one that knows nothing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2000,), generator=generator)
    truth = torch.nn.functional.one_hot(labels, 4).float()
    noise = torch.randn(3, 2000, 4, generator=generator)
    found = Answers(noise + torch.stack([2 * truth, 1.5 * truth, 0 * truth]), labels)
    worths = worth_of_each(found, ["0", "1", "2"])
    assert [w.adds for w in worths] == [True, True, False]
    assert worths[0].rise > worths[1].rise > 5 * worths[1].error
    with pytest.raises(ConfigError, match="knows nothing yet"):
        worth_of_each(Answers(-found.logits[:2], labels), ["0", "1"])


def test_a_plan_is_read_as_it_was_written_and_faults_are_named(tmp_path: Path) -> None:
    plan = TrainingPlan("p", "ours/air", ("a=1",), (PlannedRun("0", 3), PlannedRun("1+2", 2, "0")))
    path = tmp_path / "plan.toml"
    path.write_text(plan.toml("made\nfrom this"))
    assert read_plan(path) == plan
    assert "# made\n# from this\n" in path.read_text()
    text = path.read_text()
    for change, says in (
        (("epochs = 3", "epochs = 0"), "at least 1"),
        (("epochs = 3", "epochs = 3.5"), "no whole number"),
        (('after = "0"', 'after = "3"'), "not among the runs above"),
        (('after = "0"', 'after = "0+1"'), "no single shard"),
        (('shard = "1+2"', 'shard = "0"'), "planned twice"),
        (('name = "p"', 'name = "p"\nfrom = 1'), "unknown key from"),
        (('recipe = "ours/air"\n', ""), "lacks 'recipe'"),
        (("runs = [", "runs = [ 1,"), "is no plan"),
    ):
        path.write_text(text.replace(*change))
        with pytest.raises(ConfigError, match=says):
            read_plan(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(tmp_path / "none.toml")


@pytest.mark.processes
def test_a_plan_is_made_from_a_pilot_and_followed(data: Path, tmp_path: Path) -> None:
    runs = ("--data", data / SUB4, "--runs", tmp_path / "runs")
    for k in (0, 1):
        done = spectral_here("train", *runs, "--shard", k, "--recipe", "digits", *SETTINGS,
                             "--set", "epochs=1", "--name", "pilot")  # fmt: skip
        assert done.returncode == 0, done.stderr
    out = tmp_path / "plan.toml"
    done = spectral_here("plan", *runs, "--pilot", "pilot", "--epochs", 3, "--recipe", "digits",
                         *SETTINGS, "--name", "planned", "--out", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_plan(out).epochs == 3
    (tmp_path / "own.toml").write_text(
        TrainingPlan("planned", "digits", ("batch_size=16", "model_args.width=8"),
                     (PlannedRun("0", 2), PlannedRun("3", 1, "0"))).toml()
    )  # fmt: skip
    done = spectral_here("train", *runs, "--plan", tmp_path / "own.toml")
    assert done.returncode == 0, done.stderr
    group = tmp_path / "runs" / SUB4 / "planned"
    assert sorted(path.name for path in group.iterdir()) == ["plan.toml", "shard_00", "shard_03"]
    assert (group / "plan.toml").read_text() == (tmp_path / "own.toml").read_text()
    epochs = [json.loads((group / f"shard_0{k}/result.json").read_text())["epochs"] for k in (0, 3)]
    assert epochs == [2, 1]
    spec = json.loads((group / "shard_03" / "spec.json").read_text())
    assert Path(spec["init_run"]) == group / "shard_00"
    assert tomllib.loads((group / "shard_03" / "recipe.toml").read_text())["epochs"] == 1
    done = spectral_here("ensemble", *runs, "--recipe", "planned", "--json")
    assert [row["shard"] for row in json.loads(done.stdout)["networks"]] == ["0", "3"]
    for options, says in (
        (("--plan", out, "--init-shard", 0), "the plan says what"),
        (("--plan", tmp_path / "own.toml", "--shard", 2), "none of these shards"),
        ((), "--shard all, or --plan"),
    ):
        done = spectral_here("train", *runs, *options)
        assert done.returncode in (1, 2)
        assert says in done.stderr
