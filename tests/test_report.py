"""The page of a fused classifier: one file, safe, readable in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import Done, spectral_here, write_class_folders

FAST = ("--recipe", "digits", "--set", "epochs=1", "--set", "batch_size=16",
        "--set", "model_args.width=8")  # fmt: skip
EVIL = ("<script>alert(1)<_script>", 'a&b "quoted" <b>')


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two fused networks on classes with names that would be code if they were not escaped."""
    root = tmp_path_factory.mktemp("report")
    source = write_class_folders(root / "source", {"train": 30, "val": 10})
    for split in ("train", "val"):
        for i, name in enumerate(EVIL):
            (source / split / f"class_{i}").rename(source / split / name)
        for path in sorted((source / split).rglob("*.jpg"))[::2]:
            path.rename(path.with_name("<img src=x onerror=y>" + path.name))
    done = spectral_here("prepare", "toy", "--source", source, "--size", 32, "--splits", 4,
                         "--calib", 0.3, "--out", root / "data")  # fmt: skip
    assert done.returncode == 0, done.stderr
    options = ("--data", root / "data", "--runs", root / "runs")
    for k in (0, 1):
        done = spectral_here("train", *options, "--shard", k, *FAST)
        assert done.returncode == 0, done.stderr
    assert spectral_here("ensemble", *options, "--published").returncode == 0
    return next((root / "runs").glob("*/*/*"))


def report(group: Path, out: Path, *options: object) -> Done:
    return spectral_here("report", group, "--out", out, *options)


class Reader(HTMLParser):
    """Tags of a page with what they refer to, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_one_file_says_all_and_runs_nothing(group: Path, tmp_path: Path) -> None:
    done = report(group, tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    found = Reader(page)
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "link", "iframe", "object", "form"}
    assert not [1 for _, attributes in found.tags for key in attributes if key.startswith("on")]
    references = [a[key] for _, a in found.tags for key in ("src", "href") if a.get(key)]
    assert all(str(text).startswith("data:image/webp;base64,") for text in references
               if not str(text).startswith("#"))  # fmt: skip
    result = json.loads((group / "ensemble.json").read_text())
    assert f"{result['fused']['learned']['val']['top1']:.2%}" in found.text
    assert "fused: published, leaks" in found.text
    assert "planes 2, 3" in found.text
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))  # two drawings would clip each other
    assert len(page) < 5e6


def test_without_the_data_there_is_a_page_without_pictures(group: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(group, tmp_path / "group"))
    for path in copy.rglob("spec.json"):
        content = json.loads(path.read_text()) | {"data": str(tmp_path / "gone")}
        path.write_text(json.dumps(content))
    done = report(copy, tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "is not there" in done.stderr
    assert "data:image/webp" not in (tmp_path / "page.html").read_text()
    (copy / "ensemble.json").unlink()
    done = report(copy, tmp_path / "page.html")
    assert done.returncode == 1
    assert "was not measured" in done.stderr


def test_damaged_data_cost_a_report_its_pictures_alone(group: Path, tmp_path: Path) -> None:
    """As where a shard was damaged that no network was trained on: said once."""
    data = Path(shutil.copytree(group.parents[3] / "data" / "toy" / group.parent.name,
                                tmp_path / group.parent.name))  # fmt: skip
    shard = data / "train" / "shard_03.beton"
    shard.write_bytes(shard.read_bytes()[:-1])
    done = report(group, tmp_path / "page.html", "--data", data)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the report lacks pictures: ") == 1
    assert "shard_03.beton is truncated" in done.stderr
    assert "data:image/webp" not in (tmp_path / "page.html").read_text()


@pytest.mark.processes
@pytest.mark.parametrize("width", [400])
def test_a_browser_shows_it_without_a_complaint(
    chromium: str, group: Path, tmp_path: Path, width: int
) -> None:
    """A real Chromium, which says in its log when a page wants what its policy forbids."""
    assert report(group, tmp_path / "page.html").returncode == 0
    picture = tmp_path / "page.png"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               "--v=0", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000",
               f"--screenshot={picture}"]  # fmt: skip
    page = (tmp_path / "page.html").read_text()
    for content, says in ((page, False), (page.replace("</body>", "<img src=x:y></body>"), True)):
        (tmp_path / "page.html").write_text(content)
        done = subprocess.run([*command, f"file://{tmp_path / 'page.html'}"], capture_output=True,
                              text=True, timeout=120, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("CONSOLE" in done.stderr) == says
        assert picture.stat().st_size > 20_000
