"""Networks of timm and of the user's own: built, refused, trained, found again, started from."""

import json
import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipeline.errors import ConfigError
from tests.conftest import ROOT, SUB4, spectral_here
from trainer import models
from trainer.data.selection import Prepared, select
from trainer.jobs.shards import make_specs
from trainer.models import others
from trainer.record.rundir import RunDir
from trainer.run import pretrained
from trainer.run.carry_out import carry_out
from trainer.run.network import build_network, check_network, load_network
from trainer.run.spec import RunSpec

OWN = """
from beside import stem
from torch import nn

def small(*, classes, channels, size, width=8):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    return nn.Sequential(stem(channels, width), *head)

class Nets:
    small = staticmethod(small)

def anything(**given):
    return small(**given)

def maps(*, classes, channels, size):
    return nn.Conv2d(channels, classes, 3)

def a_dict(*, classes, channels, size):
    class Net(nn.Module):
        def forward(self, x):
            return {"logits": x}
    return Net()

def large(*, classes, channels, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 24 * 24, classes))

def no_module(*, classes, channels, size):
    return "network"

def lacks(classes, size):
    return None

def fails(*, classes, channels, size):
    raise KeyError("depth")

number = 3
"""
BESIDE = """
from torch import nn

def stem(inputs, width):
    return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's, with a module and what it imports; nothing of it stays in this process."""
    path = tmp_path / "user"
    path.mkdir()
    (path / "ownnets.py").write_text(OWN)
    (path / "beside.py").write_text(BESIDE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("ownnets", "beside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(path)
    return path


def specs(data: Path, runs: Path, *settings: str, planes: tuple[int, ...] = (0,)) -> RunSpec:
    settings = ("batch_size=16", "epochs=1", *settings)
    return make_specs(select(data / SUB4), [planes], "digits", settings, runs)[0]


def silent(*_: object) -> Any:
    return nullcontext(lambda *_: None)


def check(data: Path, model: str, **args: Any) -> None:
    spec = specs(data, Path("/none"))
    recipe = replace(spec.recipe, model=model, model_args=args)
    check_network(recipe, select(data / SUB4).manifest, 1, others.home(model))


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("ownnets:maps", {}, r"answers 2 inputs of 3×16×16 by 2×3×14×14, not .* 2×3 logits"),
    ("ownnets:a_dict", {}, r"answers 2 inputs of 3×16×16 by a dict"),
    ("ownnets:large", {}, r"ownnets:large cannot take inputs of 3×16×16: RuntimeError: .*"),
    ("ownnets:no_module", {}, r"returns a str, not a torch.nn.Module"),
    ("ownnets:lacks", {}, r"takes no channels: it is called with classes, channels, size by name"),
    ("ownnets:fails", {}, r"ownnets:fails: KeyError: 'depth'"),
    ("ownnets:none", {}, r"user/ownnets.py has no 'none'"),
    ("ownnets:number", {}, r"number is a int, not a function"),
    ("ownnets:small", {"depth": 3}, r"no model_args.depth here; valid are width"),
    ("ownnets:small", {"size": 3}, r"model_args.size cannot be said"),
    ("nowhere:small", {}, r"no module 'nowhere' in .*user, nor on PYTHONPATH"),
    ("trainer.nets:small", {}, r"trainer is a package of this tool: give yours another name"),
    ("own nets:small", {}, r"write timm:NAME, or module:function"),
    ("timm:resnt18", {}, r"near it are timm:resnet18,"),
    ("timm:hf-hub:timm/resnet18", {}, r"timm \S+ has none"),
    ("timm:resnet18", {"depth": 3}, r"no model_args.depth here \(ResNet"),
    ("timm:resnet18", {"pretrained": True}, r"model_args.pretrained cannot be said"),
    ("timm:resnet18", {"layers": "x"}, r"network timm:resnet18: "),
    ("timm:test_vit", {"patch_size": 32}, r"network timm:test_vit.*"),
    ("timm:vgg11", {}, r"timm:vgg11 cannot take inputs of 3×16×16: RuntimeError: .*too small"),
]


@pytest.mark.parametrize(("model", "args", "said"), WRONG)
def test_what_cannot_be_trained_is_refused_before(
    data: Path, folder: Path, model: str, args: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check(data, model, **args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("ownnets:small", {"width": 4}),
        ("ownnets:Nets.small", {}),
        ("ownnets:anything", {"width": 4}),
        ("timm:test_resnet", {"stem_type": "deep"}),
        ("timm:test_vit", {"embed_dim": 32}),  # takes img_size: 224 would be wrong here
        ("timm:resnet18.a1_in1k", {}),
    ],
)
def test_what_can_be_is_built(data: Path, folder: Path, model: str, args: dict[str, Any]) -> None:
    check(data, model, **args)
    network = models.build(model, others.home(model), classes=7, channels=6, size=16, **args)
    assert network(torch.zeros(2, 6, 16, 16)).shape == (2, 7)


def test_a_layer_that_needs_memory_is_looked_at_on_the_cpu(data: Path, folder: Path) -> None:
    """What cannot be built, or run, on torch's meta device."""
    (folder / "reads.py").write_text(
        "import torch\nfrom torch import nn\nfrom ownnets import small\n"
        "def net(**given):\n"
        "    assert torch.linspace(0, 1, 3)[1].item() == 0.5\n"
        "    return small(**given)\n"
    )
    check(data, "reads:net")


def test_weights_depend_on_the_seed_alone(data: Path, folder: Path, tmp_path: Path) -> None:
    manifest = select(data / SUB4).manifest
    for model in ("ownnets:small", "timm:test_resnet"):
        recipe = specs(data, tmp_path, f"model={model}").recipe
        first, again = (build_network(recipe, manifest).state_dict() for _ in range(2))
        torch.rand(3)
        other = build_network(replace(recipe, seed=5), manifest).state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)


def test_two_modules_of_one_name_are_told_apart(data: Path, folder: Path, tmp_path: Path) -> None:
    """In one process the second would silently be the first."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ownnets.py").write_text("def small(**given): return None")
    models.build("ownnets:small", folder, classes=2, channels=3, size=8)
    with pytest.raises(ConfigError, match=r"module ownnets is .*user/ownnets.py for another"):
        models.build("ownnets:small", tmp_path / "b", classes=2, channels=3, size=8)


def test_the_module_beside_comes_first_but_hides_nothing_of_others(
    data: Path, folder: Path
) -> None:
    """A helper called as an installed package is the user's, while the user's module is loaded."""
    (folder / "yaml.py").write_text("mine = True\n")
    (folder / "uses.py").write_text("from yaml import mine\nfrom ownnets import small\n")
    loaded = sys.modules.pop("yaml", None)
    try:
        check(data, "uses:small")
    finally:
        sys.modules.pop("yaml", None)
        if loaded is not None:
            sys.modules["yaml"] = loaded
    assert sys.path.index(str(folder)) == len(sys.path) - 1


@pytest.mark.processes
def test_a_users_network_is_found_by_ranks_workers_and_from_anywhere(
    data: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun, then the queue, from the user's folder; resumed and read from another one."""
    runs = tmp_path / "runs"
    train: list[object] = ["train", "--data", data / SUB4, "--runs", runs, "--recipe", "digits"]
    train += ["--model", "ownnets:small", "--set", "epochs=2", "--set", "batch_size=16"]
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = ["-m", *torchrun, "-m", "spectral_shards", *map(str, [*train, "--shard", 0])]
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    queued = spectral_here(*train, "--shard", "0,1", "--jobs", 2)
    assert queued.returncode == 0, queued.stderr
    found = sorted(path.parent for path in runs.rglob("result.json"))
    assert [path.name for path in found] == ["shard_00", "shard_01"]
    assert found[0].parent.name == "digits+batch_size=16+epochs=2+model=ownnets:small"
    spec = RunSpec.load(found[1] / "spec.json")
    assert spec.code == folder

    (found[1] / "result.json").unlink()
    worker = [sys.executable, ROOT / "spectral_shards.py", "worker", found[1] / "spec.json"]
    done = subprocess.run(worker, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (found[1] / "result.json").exists()
    ensemble = spectral_here("ensemble", "--data", data / SUB4, "--runs", runs, "--json")
    assert json.loads(ensemble.stdout)

    (folder / "ownnets.py").write_text(OWN + "\n# changed\n")
    load_network(RunDir(found[1]), select(data / SUB4).manifest, torch.device("cpu"))
    assert "ownnets.py has changed since the run was started" in capsys.readouterr().err


def test_a_network_of_timm_is_trained_on_a_group_of_planes(data: Path, tmp_path: Path) -> None:
    spec = specs(data, tmp_path, "model=timm:test_resnet", planes=(0, 3))
    assert spec.directory.parent.name == "digits+batch_size=16+epochs=1+model=timm:test_resnet"
    assert "1 epochs" in carry_out(spec, silent)
    prepared = select(data / SUB4)
    network = load_network(RunDir(spec.directory), prepared.manifest, torch.device("cpu"), 2)
    assert network(torch.zeros(1, 6, 16, 16)).shape == (1, 3)
    assert spec.code is None


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_timms_networks_start_from_timms_files(
    name: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Head and first convolution as ever; a ViT's table of positions as timm does it."""
    torch.manual_seed(1)
    theirs = timm.create_model(name)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = models.build(f"timm:{name}", classes=3, channels=6, size=16)
    with caplog.at_level(logging.INFO):
        pretrained.start_from(ours, tmp_path / "theirs.pth")
    classifier = theirs.pretrained_cfg["classifier"]
    assert f"{classifier}.weight starts anew" in caplog.text
    assert f"{theirs.pretrained_cfg['first_conv']}.weight is refitted" in caplog.text
    taken = [
        name
        for name, value in ours.state_dict().items()
        if value.shape == theirs.state_dict()[name].shape
    ]
    assert len(taken) > 10
    for name in taken:
        assert torch.equal(ours.state_dict()[name], theirs.state_dict()[name]), name


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "theirs.pth")
    ours = models.build("timm:test_vit", classes=3, channels=3, size=16)
    with pytest.raises(
        ConfigError, match=r"--init .*theirs.pth does not fit this recipe's network"
    ):
        pretrained.start_from(ours, tmp_path / "theirs.pth")


def test_a_users_network_starts_from_a_file(data: Path, folder: Path, tmp_path: Path) -> None:
    first = models.build("ownnets:small", folder, classes=9, channels=3, size=32)
    torch.save(first.state_dict(), tmp_path / "first.pth")
    spec = replace(specs(data, tmp_path, "model=ownnets:small"), init=tmp_path / "first.pth")
    ours = build_network(spec.recipe, Prepared(data / SUB4, select(data / SUB4).manifest).manifest)
    pretrained.start_from(ours, tmp_path / "first.pth")
    assert torch.equal(ours.state_dict()["0.0.weight"], first.state_dict()["0.0.weight"])
    assert "1 epochs" in carry_out(spec, silent)


def test_networks_are_listed_and_searched() -> None:
    """Ours with their parameters; timm's are counted, and named where words choose."""
    lines = spectral_here("networks").stdout.splitlines()
    assert any(line.split()[:2] == ["resnet18", "11,681,832"] for line in lines)
    assert f"timm:NAME: {len(timm.list_models()):,} networks of timm" in lines[-2]
    found = json.loads(spectral_here("networks", "ResNet", "18", "--json").stdout)
    assert [each["name"] for each in found["ours"]] == [
        *("resnet18", "resnet18x1", "imagenet-preact-resnet18"),
    ]
    assert "timm:seresnet18" in found["timm"]
    assert "timm:seresnet18" in spectral_here("networks", "resnet18").stdout.splitlines()
    none = spectral_here("networks", "nosuch")
    assert (none.returncode, "no network with nosuch" in none.stderr) == (1, True)
