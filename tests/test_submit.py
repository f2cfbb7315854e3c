"""What is submitted, without a Slurm: the site's file, scripts, manifests, and who goes on."""

import json
import os
import shlex
import subprocess
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.ranges import ranges
from tests.conftest import SUB4, spectral_here
from tests.test_prepare import TOY
from trainer.cluster import again
from trainer.cluster.again import FailedError, check
from trainer.cluster.site import Site, load
from trainer.cluster.tasks import assign
from trainer.recipes.plan import PlannedRun, TrainingPlan
from trainer.record import status
from trainer.record.rundir import RunDir
from trainer.record.status import Status
from trainer.record.status import read as read_status

KUBERNETES = json.loads((Path(__file__).parent / "data" / "kubernetes_job.json").read_text())
SMALL = ("--recipe", "digits", "--set", "batch_size=16", "--name", "x")


def locked(run: Path) -> AbstractContextManager[None]:
    return RunDir(run).locked()


def submit(data: Path, runs: Path, *options: object, site: str = "") -> str:
    runs.mkdir(exist_ok=True)
    (runs / "site.toml").write_text(site)
    done = spectral_here("submit", "train", "--data", data / SUB4, "--runs", runs, *SMALL,
                         "--site", runs / "site.toml", "--dry-run", *options)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_numbers_are_written_as_an_array() -> None:
    assert ranges([19, 3, 17, 18, 3]) == "3,17-19"
    assert ranges([]) == ""
    assert ranges(range(36)) == "0-35"


def test_the_site_and_the_options_stand_in_a_script_that_bash_can_read(
    data: Path, tmp_path: Path
) -> None:
    """In folders of any name; nothing is written, and no Slurm is needed."""
    site = """
[slurm]
account = "abc"
partition = "slow"
setup = ["module load python"]
container = "apptainer exec --nv a.sif"
options = ["--constraint=a100"]
"""
    runs = tmp_path / "my runs 100%"
    text = submit(data, runs, "--shard", "0,2", "--partition", "fast", "--time", "1:00:00",
                  "--at-once", 1, "--starts", 5, "--", "--mem", "32G", site=site)  # fmt: skip
    script, _, listed = text.partition("\n# tasks\n")
    options = [line[8:] for line in script.splitlines() if line.startswith("#SBATCH ")]
    for option in ("--account=abc", "--partition=fast", "--time=1:00:00", "--array=0,2%1",
                   "--gpus-per-node=1", "--signal=USR2@300"):  # fmt: skip
        assert option in options
    assert options[-1] == "--constraint=a100 --mem 32G"
    assert any("my runs 100%%/slurm" in option for option in options)
    assert "\nmodule load python\n" in script
    assert 'apptainer exec --nv a.sif spectral worker "$run/spec.json"' in script
    assert 'again "$run" $status --starts 5' in script
    assert f"# 2\t{runs}/{SUB4}/x/shard_02" in listed
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert [path.name for path in runs.iterdir()] == ["site.toml"]


def test_processes_of_one_shard_are_told_who_they_are(data: Path, tmp_path: Path) -> None:
    text = submit(data, tmp_path / "runs", "--shard", 1, "--gpus", 4, "--nodes", 2)
    for words in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "WORLD_SIZE=8",
                  "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID"):  # fmt: skip
        assert words in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[slurm]\npartitoin = 'x'", "partitoin is not known.*account, partition"),
        ("[pbs]", "pbs is not known"),
        ("[slurm]\ncpus = 'x'", "cpus = 'x' has to be a whole number"),
        ("[slurm]\nsetup = 'x'", "setup = 'x' has to be a list of texts"),
        ('[slurm]\nsetup = ["a\\nb"]', "setup has to be on one line"),
        ("[slurm]\noptions = ['--array=1']", "--array=1 is not for you to say"),
        ("[slurm", "is no TOML"),
    ],
)
def test_a_wrong_file_of_the_site_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "site.toml")


def test_options_win_over_the_file() -> None:
    site = Site(partition="a", options=("-x",)).over(("--mem=1",), partition="b", time=None)
    assert (site.partition, site.options) == ("b", ("-x", "--mem=1"))


def test_tasks_are_numbered_by_shards_where_that_tells_them_apart() -> None:
    def named(*names: str, most: int = 1001) -> dict[int, list[str]]:
        runs = assign([Path("/r", name) for name in names], "train", most).runs
        return {
            task: [f"{run.parent.name}/{run.name}" for run in own] for task, own in runs.items()
        }

    assert named("x/shard_03", "x/shard_11") == {3: ["x/shard_03"], 11: ["x/shard_11"]}
    assert list(named("x/shard_03", "y/shard_03")) == [0, 1]
    assert list(named("x/shard_00+01", "x/shard_03")) == [0, 1]
    assert list(named("x/shard_03", most=3)) == [0]
    many = named(*(f"x/shard_{k:02d}" for k in range(7)), most=3)
    assert [len(own) for own in many.values()] == [3, 3, 1]


# who goes on


def run_directory(folder: Path) -> Path:
    (folder / "spec.json").write_text("{}")
    (folder / "stderr.log").write_text("noise\nError: the disk is full\nmore noise\n")
    return folder


def end(run: Path, status: int, saved: int | None = None) -> str:
    """A start that saved so far, and ended like this."""
    Status(run).update(state="stopped", **({} if saved is None else {"saved": saved}))
    return check(run, status, 3)


def test_preemptions_are_not_counted_but_starts_without_progress_are(tmp_path: Path) -> None:
    run = run_directory(tmp_path)
    for step in range(1, 201):
        assert f"stopped, saved at step {step}" in end(run, 75, step)
    for _ in range(2):
        assert "killed by SIGKILL (often: memory ran out), saved at step 200" in end(run, 137)
    with pytest.raises(FailedError, match="given up after 3 starts that ended at step 200"):
        end(run, 139)
    state = read_status(run)
    assert state is not None
    assert state.state == "failed"
    assert "killed by SIGSEGV" in (state.error or "")
    again.forget(run)
    assert "back into the queue" in end(run, 75)


def test_an_error_is_final_and_said(tmp_path: Path) -> None:
    run = run_directory(tmp_path)
    for failure in (1, 2, 126):
        with pytest.raises(FailedError, match="the disk is full; more in "):
            end(run, failure)
    state = read_status(run)
    assert state is not None
    assert (state.state, state.error) == ("failed", "the disk is full")


def test_parts_get_on_by_rows_and_merges_by_shards(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    for rows in (10, 20, 20, 20):
        record = json.dumps({"tally": {"rows": rows}})
        (tmp_path / "journal" / "state").write_text(f"0000 {record}\n")
        assert f"saved at step {rows}" in check(tmp_path, 137, 3)
    with pytest.raises(FailedError, match="given up"):
        check(tmp_path, 137, 3)
    assert not (tmp_path / "status.json").exists()


# locks that a file system keeps within one machine


def trained_elsewhere(run: Path, job: str | None) -> None:
    Status(run).update(state="training")
    path = run / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere", "job": job}))


def test_a_run_whose_other_machine_is_heard_of_again_is_busy(tmp_path: Path) -> None:
    trained_elsewhere(tmp_path, "12_3")
    beat = threading.Timer(1.5, os.utime, (tmp_path / "status.json",))
    beat.start()
    with pytest.raises(ConfigError, match=r"another process trains .*elsewhere"), locked(tmp_path):
        pass


def test_a_run_whose_other_machine_is_silent_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "ALIVE", 2.0)
    trained_elsewhere(tmp_path, "12_3")
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began > 1


def test_a_job_that_went_back_into_the_queue_does_not_wait_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    trained_elsewhere(tmp_path, "12_3")
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began < 1


# Kubernetes


def faults(value: Any, schema: dict[str, Any], place: str = "") -> list[str]:
    """Where a value is not as the published schema says; strict: an unknown field is a fault."""
    if "$ref" in schema:
        schema = KUBERNETES["definitions"][schema["$ref"]]
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool,
             "number": (int, float), "null": type(None)}  # fmt: skip
    wanted = schema.get("type", [])
    named = [wanted] if isinstance(wanted, str) else wanted
    if named and not any(isinstance(value, types[name]) for name in named):
        return [f"{place} = {value!r} is no {named}"]
    found = [f"{place} lacks {name}" for name in schema.get("required", []) if name not in value]
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        found += [f"{place}.{name} is not known" for name in value if name not in known]
        for name in value.keys() & known.keys():
            found += faults(value[name], known[name], f"{place}.{name}")
    for at, item in enumerate(value if isinstance(value, list) else []):
        found += faults(item, schema.get("items", {}), f"{place}[{at}]")
    return found


def test_the_manifest_of_kubernetes_is_what_its_schema_wants(data: Path, tmp_path: Path) -> None:
    """By name and type all fields, by value those that decide on what goes on."""
    text = submit(data, tmp_path / "runs", "--shard", "0,2-3", "--engine", "kubernetes",
                  "--save-every", "10m", "--at-once", 2)  # fmt: skip
    job: dict[str, Any] = yaml.safe_load(text)
    assert faults(job, KUBERNETES["definitions"]["Job"]) == []
    wrong = yaml.safe_load(text.replace("podFailurePolicy", "podFailurePolicies"))
    wrong["spec"]["template"]["spec"]["containers"][0]["args"] = "a text"
    wrong["spec"]["completions"] = "3"
    assert len(faults(wrong, KUBERNETES["definitions"]["Job"])) == 3
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 2)
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["backoffLimitPerIndex"] == 3
    by_action = [(rule["action"], rule.get("onExitCodes")) for rule in
                 spec["podFailurePolicy"]["rules"]]  # fmt: skip
    assert by_action == [
        ("Ignore", None),
        ("Ignore", {"operator": "In", "values": [75]}),
        ("FailIndex", {"operator": "In", "values": [1, 2]}),
    ]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 300
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"cpu": 4, "nvidia.com/gpu": 1}
    (script,) = container["args"]
    assert script.startswith("shards=(0 2 3)\nexec spectral train --data ")
    assert "--recipe digits --set batch_size=16 --name x --save-every 10m" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    refused = spectral_here("submit", "train", "--shard", 0, "--data", data / SUB4,
                            "--runs", tmp_path, *SMALL, "--engine", "kubernetes")  # fmt: skip
    assert refused.returncode == 2
    assert "say --dry-run too" in refused.stderr


# a preparation


def test_a_preparation_is_three_jobs_that_say_all_options_again(tmp_path: Path) -> None:
    out = tmp_path / "out put"
    command = ("submit", "prepare", "toy", "--source", tmp_path, "--splits", 4, "--size", 32,
               "--classes", "all", "--test-split", "--max-bad", 7, "--out", out, "--dry-run",
               "--cpus", 3)  # fmt: skip
    done = spectral_here(*command, "--parts", 12, "--", "--mem=3G")
    assert done.returncode == 0, done.stderr
    scripts = done.stdout.split("#!/bin/bash")[1:]
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert "#SBATCH --mem=3G\n" in script
        assert "#SBATCH --cpus-per-task=3\n" in script
    listing, array, merging = scripts
    words = f"prepare toy --source {tmp_path} --out '{out}' --splits 4 --size 32"
    more = "--classes all --test-split --max-bad 7 --workers 3 --part"
    assert f"{words} {more} 0/12 " in listing
    assert f'{words} {more} "$SLURM_ARRAY_TASK_ID/12" ' in array
    assert "#SBATCH --array=1-12\n" in array
    assert "sbatch --dependency=afterok:LIST prepare.sh" in listing
    assert f"merge --max-bad 7 '{out}/toy/sub4-s32-all-test' " in merging
    assert not out.exists()
    for wrong, exit_status, said in (
        (("--parts", 1001), 1, "an array has room for 1000 here"),
        (("--parts", 2, "--overwrite"), 2, "--overwrite is not for jobs"),
    ):
        done = spectral_here(*command, *wrong)
        assert done.returncode == exit_status
        assert said in done.stderr


# from the data to the report


def everything(data: Path, runs: Path, *options: object) -> str:
    done = spectral_here("submit", "all", "toy", "--source", runs, "--out", data, "--runs", runs,
                         *TOY, "--name", "x", "--dry-run", *options)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_that_waits_for_the_data_says_the_same_again(tmp_path: Path) -> None:
    text = everything(tmp_path / "out put", tmp_path, "--parts", 3, "--max-bad", 7, "--gpus", 0,
                      "--recipe", "digits", "--container", "apptainer exec a.sif",
                      "--", "--mem=3G")  # fmt: skip
    scripts = text.split("#!/bin/bash")[1:]
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert len(scripts) == 4
    assert "sbatch --dependency=afterok:MERGE all.sh" in scripts[2]
    going_on = scripts[3]
    line = going_on.strip().splitlines()[-1]
    assert "apptainer" not in line.split(" submit all ")[0]
    said = shlex.split(line)
    assert said[said.index("submit") :][:3] == ["submit", "all", "toy"]
    assert said[-2:] == ["--", "--mem=3G"]
    for name, value in (("--out", f"{tmp_path}/out put"), ("--runs", str(tmp_path)),
                        ("--parts", "3"), ("--max-bad", "7"), ("--gpus", "0"),
                        ("--splits", "4"), ("--recipe", "digits"),
                        ("--container", "apptainer exec a.sif")):  # fmt: skip
        assert said[said.index(name) + 1] == value
    assert [path.name for path in tmp_path.iterdir()] == []


def test_what_is_prepared_is_trained_fused_and_reported(data: Path, tmp_path: Path) -> None:
    """With a plan shard 2 goes first, and the others wait for it."""
    plan = tmp_path / "plan.toml"
    runs = (PlannedRun("2", 2), PlannedRun("0", 1, "2"), PlannedRun("1", 1, "2"))
    plan.write_text(TrainingPlan("x", "digits", ("batch_size=16",), runs).toml("made for a test"))
    text = everything(data, tmp_path / "runs", "--plan", plan)
    assert text.startswith(f"{data / SUB4}: finished already\n")
    first, others, fusing = text.split("#!/bin/bash")[1:]
    assert "#SBATCH --array=2\n" in first
    assert "#SBATCH --array=0-1\n" in others
    assert "sbatch --dependency=afterok:JOB_2 job.sh" in first
    assert "sbatch --dependency=afterany:JOB_0,afterany:JOB_1,afterany:JOB_2 job.sh" in others
    group = tmp_path / "runs" / SUB4 / "x"
    assert "ensemble --data" in fusing
    assert f"report {group} --out {group}/report.html" in fusing
    subprocess.run(["bash", "-n"], input=fusing, text=True, check=True)
