"""The demo's prepared digits in; five trained networks, a table and a picture out."""

import json
import time
from pathlib import Path
from typing import Any

from pipeline.planes.imaging import image_to_values
from trainer.data.selection import Prepared, select
from trainer.fusion.ensemble import ensemble
from trainer.jobs.shards import make_specs
from trainer.process.device import pick_device
from trainer.reports.report import table
from trainer.run.carry_out import carry_out
from trainer.run.fit import ProgressBar

RECIPE = "digits"
NEXT = """
The digits are 8×8 pixels enlarged to 32×32, so that planes other than 0 hold little: this is
a smoke test of the whole line, no result. Next, on your own folder of images (DIR/train/<class>/*,
DIR/val/<class>/*):

  spectral prepare mine --source DIR --size 224 --splits 4
  spectral train --dataset mine --shard all
  spectral ensemble --dataset mine
  spectral predict --dataset mine photo.jpg"""


def run(out: Path, json_file: Path | None, progress_bar: ProgressBar) -> str:
    """Train and fuse what is prepared in OUT/data; the table, as text."""
    started = time.monotonic()
    results = {splits: _one(out, splits, progress_bar) for splits in (4, 1)}
    seconds = time.monotonic() - started
    fused = results[4]["fused"]["learned"]["val"]
    baseline = results[1]["networks"][0]["val"]
    summary = {
        "fused_top1": fused["top1"],
        "baseline_top1": baseline["top1"],
        "shards": [row["val"]["top1"] for row in results[4]["networks"]],
        "seconds": round(seconds, 1),
    }
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(summary, indent=1) + "\n")
    picture = out / "demo.png"
    _draw(out, summary, picture)
    return "\n".join(
        [
            "",
            table(results[4]),
            f"whole image: top-1 {baseline['top1']:.2%}",
            f"\nfive networks trained and fused in {seconds:.0f} s; see {picture}",
            NEXT,
        ]
    )


def _one(out: Path, splits: int, progress_bar: ProgressBar) -> dict[str, Any]:
    data = select(out / "data", splits=splits)
    runs = out / "runs"
    specs = make_specs(data, [(k,) for k in range(splits)], RECIPE, (), runs)
    for spec in specs:
        print(carry_out(spec, progress_bar), flush=True)
    return ensemble(data, specs[0].directory.parent, pick_device(), progress_bar)


def _draw(out: Path, summary: dict[str, Any], picture: Path) -> None:
    """One digit, its four planes, and a bar for each network's accuracy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    image, planes = _example(out, select(out / "data", splits=4))
    figure, axes = plt.subplots(
        1, 6, figsize=(14, 3), layout="constrained", width_ratios=[1, 1, 1, 1, 1, 2]
    )
    shown = [image, *planes]
    titles = ["image", *(f"plane {k}" for k in range(len(planes)))]
    for axis, pixels, title in zip(axes, shown, titles, strict=False):
        axis.imshow(pixels, cmap="gray")
        axis.set_title(title)
        axis.set_axis_off()
    names = [*(f"plane {k}" for k in range(4)), "fused", "whole"]
    values = [*summary["shards"], summary["fused_top1"], summary["baseline_top1"]]
    bars = axes[-1].barh(names, [100 * v for v in values], color=["#789"] * 4 + ["#27a", "#a72"])
    axes[-1].bar_label(bars, fmt="%.1f", padding=2)
    axes[-1].set(xlim=(0, 112), xlabel="top-1 on val (%)")
    axes[-1].invert_yaxis()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _example(out: Path, data: Prepared) -> tuple[Any, Any]:
    """One digit as it was stored (H, W), and its planes (4, h, w)."""
    from PIL import Image

    path = min((out / "images" / "train" / "3").iterdir())
    with Image.open(path) as image:
        return image.convert("L"), image_to_values(path.read_bytes(), data.manifest.preparation)[
            :, 0
        ]
