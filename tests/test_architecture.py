"""The rules of the house, read from the imports themselves."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, spectral_here

# What the trainer may know of the offline stage: what describes data on disk, `imaging`, which
# turns an image into its planes, `zstd`, the one library for frames, and what both need.
SHARED = {
    *("format.beton", "format.manifest", "format.parts", "format.samples", "format.zstd"),
    *("planes.imaging", "preparation", "transforms", "catalogue"),
    "planes.kernels.analyse",  # its constants, for the exported split
    *("console", "limits", "errors", "files", "ranges", "jit"),
}
# Packages and modules from the ground up: each may import what stands in the lines before its own
LAYERS = {
    "pipeline": (
        (
            "choices",
            "limits",
            "errors",
            "files",
            "jit",
            "progress",
            "ranges",
            "transforms",
            "digits",
        ),
        ("catalogue", "console"),
        ("preparation",),
        ("planes", "sources", "format"),
        ("stage",),
        ("inspection",),
    ),
    "trainer": (
        ("console",),
        ("process", "recipes", "models"),
        ("data", "methods"),
        ("api", "record"),
        ("reports",),
        ("run",),
        ("jobs", "fusion"),
        ("cluster",),
        ("demo", "export"),
        ("commands",),
    ),
}
HEAVY = {"torch", "ffcv", "numba", "torchvision"}


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything that a module imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def test_pipeline_imports_neither_torch_nor_ffcv_nor_the_trainer() -> None:
    for path in modules("pipeline"):
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert not tops & {"torch", "torchvision", "ffcv", "trainer", "cli"}, path


def test_the_trainer_knows_of_the_pipeline_only_what_describes_data() -> None:
    for path in modules("trainer"):
        names = imports_of(path)
        used = {name.removeprefix("pipeline.") for name in names if name.startswith("pipeline.")}
        allowed = {*SHARED, *(name.split(".")[0] for name in SHARED), "__version__"}
        for name in used:
            assert name in allowed or name.rpartition(".")[0] in SHARED, (path, name)
        assert "cli" not in names, path


@pytest.mark.parametrize("top", sorted(LAYERS))
def test_imports_go_down_the_layers_alone(top: str) -> None:
    """So that data flows one way, and a package can be read without those above it."""
    level = {name: at for at, names in enumerate(LAYERS[top]) for name in names}
    for path in modules(top):
        own = path.relative_to(ROOT / top).parts[0].removesuffix(".py")
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith(f"{top}.")}
        for name in used - {own, "__version__"}:
            assert own == "__init__" or level[name] < level[own], (path, name)


def test_every_module_says_what_it_is_for() -> None:
    for package in ("pipeline", "trainer"):
        for path in modules(package):
            assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize(
    "command",
    [
        "",
        "prepare",
        "train",
        "networks",
        "recipes",
        "submit",
        "status",
        "plot",
        "ensemble",
        "predict",
        "demo",
    ],
)
def test_help_loads_nothing_heavy(command: str) -> None:
    """`--help` answers at once: no torch, ffcv or numba is loaded for it."""
    code = (
        "import sys, cli\n"
        f"sys.argv = ['spectral', *{[command] if command else []!r}, '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"assert not set(sys.modules) & {HEAVY!r}, set(sys.modules) & {HEAVY!r}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: spectral" in done.stdout


def test_bash_completes_commands_options_and_values_without_torch() -> None:
    asked = "import sys, cli\ntry:\n    cli.main(prog_name='spectral')\nfinally:\n"
    asked += f"    assert not set(sys.modules) & {HEAVY!r}, set(sys.modules) & {HEAVY!r}"
    for line, expected in (("tra", "train"), ("train --fe", "--feed"), ("train --feed ", "stream")):
        words = {"COMP_WORDS": f"spectral {line}", "COMP_CWORD": str(len(line.split(" ")))}
        done = subprocess.run(
            [sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, **words, "_SPECTRAL_COMPLETE": "bash_complete"},
        )  # fmt: skip
        assert f"plain,{expected}" in done.stdout.split(), done.stderr
        assert "AssertionError" not in done.stderr
    script = spectral_here("completion", "bash").stdout
    done = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p spectral"], capture_output=True, text=True
    )
    assert "_spectral_completion spectral" in done.stdout


def test_a_wheel_carries_the_data_files_and_works_elsewhere(tmp_path: Path) -> None:
    """Built, installed without dependencies, run from another folder."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"cli.py", "pipeline/datasets.toml", "trainer/recipes/ours/digits.toml"} <= set(names)
    assert {"spectral_shards.py", "pipeline/py.typed", "trainer/py.typed"} <= set(names)

    env = tmp_path / "env"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(env)],
        check=True,
    )
    site = next((env / "lib").glob("python*/site-packages"))
    # the packages of the environment that runs the tests, but not its editable checkout
    outer = next(p for p in sys.path if p.endswith("site-packages"))
    (site / "outer.pth").write_text(outer + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(env / "bin" / "python"), "install",
         "--no-deps", "--no-index", "--force-reinstall", "--quiet", str(wheel)],
        check=True,
    )  # fmt: skip
    program = env / "bin" / "spectral"
    for args, expected in ((["datasets"], "imagenet21k"), (["demo", "--help"], "digits")):
        done = subprocess.run([program, *args], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    where = [str(env / "bin" / "python"), "-c", "import pipeline; print(pipeline.__file__)"]
    assert str(site) in subprocess.run(where, cwd=tmp_path, capture_output=True, text=True).stdout
