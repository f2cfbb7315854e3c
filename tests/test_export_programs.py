"""The classifier as a program for ONNX Runtime and for torch.export: the same codes and classes."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipeline.preparation import preparation
from tests.conftest import RAW, ROOT, SUB4, spectral_here
from tests.test_export import export, exported
from tests.test_export_split import images_and_planes
from tests.test_fusion import LABEL, ensembled, train
from trainer import FusedClassifier
from trainer.export import module, onnx_file, onnx_graph, split
from trainer.export.module import Front

SMALL = ("--set", "model=fc2", "--set", "model_args.width=16")
SMALL_LABEL = "digits+batch_size=16+epochs=2+model=fc2+model_args.width=16"


@pytest.fixture(scope="module")
def group(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks of a kind, with batch norm and a shortcut, and one on two planes."""
    root = tmp_path_factory.mktemp("runs")
    for shard in ("0", "3", "1+2"):
        train(data / SUB4, root, "--shard", shard)
    ensembled(data / SUB4, root, "--method", "average")
    return root / SUB4 / LABEL


@pytest.fixture(scope="module")
def small(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three networks that take little time to translate, two of them of a kind; pooled otherwise,
    on dct2 planes.
    """
    root = tmp_path_factory.mktemp("small")
    for shard in ("1", "2", "0+3"):
        train(data / RAW, root, "--shard", shard, *SMALL)
    ensembled(data / RAW, root, "--method", "average", "--over", "probabilities", "--flip")
    return root / RAW / SMALL_LABEL


def photographs(source: Path) -> list[Path]:
    return sorted((source / "val").rglob("*.jpg"))


def loaded(folder: Path, images: list[Path]) -> np.ndarray[Any, Any]:
    own = runpy.run_path(str(folder / "preprocess.py"))["load"]
    return np.concatenate([own(path) for path in images])


def answers(path: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, {"images": images})[0]
    return found


def expected(path: Path, images: list[Path]) -> torch.Tensor:
    classifier = FusedClassifier.load(path)
    return classifier.probabilities(torch.stack([classifier.planes_of_image(i) for i in images]))


@pytest.mark.parametrize(
    ("p", "transform", "layout", "channels"), [(6, "dct", "phase", 3), (4, "dct2", "block", 1)]
)
def test_planes_in_onnx_runtime_are_those_of_the_kernels(
    p: int, transform: str, layout: str, channels: int
) -> None:
    """Not one value differs, in batches of one, three and eight."""
    prep = preparation("x", p * p, size=12 * p, channels=channels, transform=transform,
                       layout=layout)  # fmt: skip
    images, planes = images_and_planes(prep, 8)
    front = Front(split.Split(prep), [tuple(range(p * p))])
    program = onnx_graph.traced(front, (images[:2],))
    model = onnx_graph.translated(program, ["images"], ["planes"])
    session = onnxruntime.InferenceSession(
        onnx_graph.ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for count in (1, 3, 8):
        found = session.run(None, {"images": images[:count].numpy()})[0]
        assert np.array_equal(found, planes[:count].numpy().astype(np.float32))


def test_an_onnx_file_classifies_photographs_as_predict_does(
    group: Path, source: Path, tmp_path: Path
) -> None:
    """Through the preprocessing beside it, at any batch size; it says what it is, and names no
    file of this machine.
    """
    to = exported(group, tmp_path / "out", "--format", "onnx")
    assert {file.name for file in to.iterdir()} == {
        "model.onnx", "preprocess.py", "classifier.json"}  # fmt: skip
    images = photographs(source)
    pixels, own = loaded(to, images), expected(group, images).numpy()
    for count in (1, 7, 30):
        found = answers(to / "model.onnx", pixels[:count])
        assert np.abs(found - own[:count]).max() < 1e-5
        assert np.array_equal(found.argmax(1), own[:count].argmax(1))
    model = onnx.load(to / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    facts = json.loads((to / "classifier.json").read_text())
    assert [entry.version for entry in model.opset_import] == [facts["opset"]] == [18]
    assert model.ir_version == facts["ir_version"] == 8
    (meta,) = model.metadata_props
    assert json.loads(meta.value)["classes"] == facts["classes"]
    assert facts["input"]["shape"] == ["B", 32, 32, 3]
    content = (to / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in content
    assert b".py" not in content


def test_a_program_of_torch_classifies_the_same(small: Path, source: Path, tmp_path: Path) -> None:
    """Of another number of images than it was traced with; without a file of this machine."""
    to = exported(small, tmp_path / "out", "--format", "pt2")
    read: Any = torch.export.load(to / "model.pt2").module()
    images = photographs(source)
    pixels, own = torch.from_numpy(loaded(to, images)), expected(small, images)
    for count in (1, 7, 30):
        assert (read(pixels[:count]) - own[:count]).abs().max() < 1e-5
    shutil.unpack_archive(to / "model.pt2", tmp_path / "parts", "zip")
    text = b"".join(p.read_bytes() for p in (tmp_path / "parts").rglob("*") if p.is_file())
    assert str(ROOT).encode() not in text
    assert b".py" not in text


def test_what_one_file_cannot_hold_lies_beside_it(
    small: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limit lowered; from an exported folder; the new one works where it is moved to."""
    monkeypatch.setattr(onnx_file, "LARGEST", 10_000)
    weights = exported(small, tmp_path / "weights")
    to = exported(weights, tmp_path / "out", "--format", "onnx")
    facts = json.loads((to / "classifier.json").read_text())
    assert set(facts["sha256"]) == {"model.onnx", "weights.data"}
    size = (to / "model.onnx").stat().st_size
    assert (to / "weights.data").stat().st_size > 5 * 10_000 > size
    moved = Path(shutil.move(to, tmp_path / "moved"))
    images = photographs(source)
    found = answers(moved / "model.onnx", loaded(moved, images))
    assert np.abs(found - expected(small, images).numpy()).max() < 1e-5


def test_what_answers_otherwise_is_not_written(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of another network; planes rounded otherwise; an answer to one image alone."""
    with monkeypatch.context() as patched:
        patched.setattr(onnx_graph, "_give_weights", lambda graph, program: None)
        done = export(small, "--to", tmp_path / "a", "--format", "onnx")
        assert done.returncode == 1
        assert "nothing was written: a probability differs" in done.stderr
    with monkeypatch.context() as patched:
        patched.setattr(split, "ROUNDING", 0.5)
        for form in ("onnx", "pt2"):
            done = export(small, "--to", tmp_path / "b", "--format", form)
            assert done.returncode == 1
            assert "are not those of `spectral prepare`" in done.stderr
    with monkeypatch.context() as patched:
        patched.setattr(module.Back, "forward", lambda self, *x: torch.stack(x).sum(0)[:1])
        done = export(small, "--to", tmp_path / "c", "--format", "pt2")
        assert done.returncode == 1
    assert not [*tmp_path.iterdir()]


def test_what_is_not_installed_is_named(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = export(small, "--to", tmp_path / "out", "--format", "onnx")
    assert done.returncode == 1
    assert "needs onnxruntime, which is not installed: pip install" in done.stderr
    assert not [*tmp_path.iterdir()]


ALONE = """
import json, sys
import numpy as np, onnxruntime
from preprocess import load

assert "torch" not in sys.modules
session = onnxruntime.InferenceSession("model.onnx")
classes = json.load(open("classifier.json"))["classes"]
for path in sys.argv[1:]:
    found = session.run(None, {"images": load(path)})[0][0]
    print(json.dumps([path, classes[found.argmax()], float(found.max())]))
"""


@pytest.mark.chaos
def test_fifty_photographs_without_this_tool(group: Path, source: Path, tmp_path: Path) -> None:
    """A Python that has only onnxruntime, numpy and Pillow gives the classes of `predict`."""
    to = exported(group, tmp_path / "out", "--format", "onnx")
    (to / "alone.py").write_text(ALONE)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "onnxruntime", "numpy", "pillow"]
    subprocess.run(install, check=True)
    given = os.environ.get("SPECTRAL_TEST_PHOTOGRAPHS")  # a folder of your own
    images = sorted(Path(given or source).rglob("*.[jJ][pP]*"))[:50]
    assert len(images) == 50
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, "alone.py", *images], cwd=to, env=env, check=True,
                          capture_output=True, text=True)  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    listed = spectral_here("predict", "--runs", group, "--format", "jsonl", "--top", 1, *images)
    own = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [row[0] for row in found] == [row["image"] for row in own]
    best = [row["classes"][0] for row in own]
    assert [row[1] for row in found] == [one["class"] for one in best]
    apart = [abs(row[2] - one["probability"]) for row, one in zip(found, best, strict=True)]
    print(f"largest difference of a probability: {max(apart):.2g}")  # noqa: T201
    assert max(apart) < 0.02  # libjpeg and Pillow are other ones there
