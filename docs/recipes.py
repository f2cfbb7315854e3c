"""rows.toml in, recipes.md out: each row of the source documents, and what trains it here.

python docs/recipes.py            writes docs/recipes.md
python docs/recipes.py --check    fails if it is not what would be written
"""

import sys
import tomllib
from itertools import groupby
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_PAGE = _HERE / "recipes.md"
_KEYS = {"document", "table", "row", "dataset", "splits", "size", "figure", "recipe", "measured"}
_TITLES = {
    "001": "Spectral ImageNet (`spectral-imagenet/`)",
    "002": "PyTorch image classification (`cifar-zoo/`)",
    "003": "Residual networks on small ImageNets (`small-imagenet/`)",
}
_INTRO = """\
# Recipes: every row of the source documents

<!-- written by `python docs/recipes.py` from docs/rows.toml -->

    spectral recipes cifar-zoo cosine       # those whose line has these words; all without words
    spectral recipes show cifar-zoo/lars@4096-lr0.02-200        # every value, and where it is from
    spectral train --dataset cifar10 --splits 4 --shard all --recipe cifar-zoo/preact20

{count} rows, each with its recipe. What comes after the @ is a variant of the file.
The comment at the head of each file says which rows it is for, what they report and what is a
choice of ours; `--dataset` and `--splits` say what it is trained on (`sub4`: `--splits 4`; whole
images where there is none). Recipes of whole images may be used on planes too, where the network
takes them (vgg15 needs 32 px, see [`networks.md`](networks.md)). Shifts and Cutout's squares are in
pixels of the plane. "Here" is what was measured with this repository.

![Loss, rate and accuracy of three families on whole CIFAR-10](images/families.png)

Three of the rows on whole images of CIFAR-10, cut short: 15 of 300 epochs of FC-8L, 5 of 200 of
ResNet-preact-20, 400 of 48,000 iterations of source 003's ResNet-20×1, which is measured on val, as
is its way. On 2 cores of an AMD EPYC, beside other work; CIFAR-10 as JPEG lost a little, so that
accuracies run slightly below those on the original arrays. They show that the recipes train, not
what they reach:

    spectral prepare cifar10 --source cifar10 --splits 1              # the third: --test-split too
    spectral train --dataset cifar10 --splits 1 --shard 0 --recipe cifar10-fc8 --set epochs=15
    spectral train --dataset cifar10 --splits 1 --shard 0 --recipe cifar-zoo/preact20 --set epochs=5
    spectral train --data data/cifar10/sub1-test --shard 0 --recipe small-imagenet/resnet20x1 \\
        --set iterations=400 --set eval_every=80
    spectral plot runs/cifar10

FC-8L gains by the split as in source 001 (61.27 → 68.17 %): after 15 epochs 53.89 % on whole
images, the four planes 54.03, 36.40, 24.44 and 36.69 %, fused 54.74 (average), 56.73 (geometric),
57.27 % (learned): `--splits 4 --shard all`, then `spectral ensemble`.
"""
Row = dict[str, Any]


def load() -> list[Row]:
    """The rows in the order of the documents."""
    rows: list[Row] = tomllib.loads((_HERE / "rows.toml").read_text(encoding="utf-8"))["row"]
    for row in rows:
        if unknown := set(row) - _KEYS:
            raise ValueError(f"rows.toml: {row['row']}: unknown {', '.join(sorted(unknown))}")
    return rows


def page(rows: list[Row]) -> str:
    """The whole of recipes.md."""
    parts = [_INTRO.format(count=len(rows))]
    for document, of_document in groupby(rows, lambda row: row["document"]):
        parts.append(f"\n## {document}: {_TITLES[document]}\n")
        for table, of_table in groupby(of_document, lambda row: row["table"]):
            parts.append(f"\n### {table}\n\n| row | data | source | recipe | here |\n")
            parts.append("|---|---|---|---|---|\n")
            parts += [_line(row) for row in of_table]
    return "".join(parts)


def here(row: Row) -> str:
    """What was measured with this repository, or that nothing was."""
    if measured := row.get("measured"):
        return str(measured)
    needs = ": needs ImageNet" if row["dataset"].startswith("imagenet") else ""
    return f"not run here{needs}"


def _line(row: Row) -> str:
    data = row["dataset"]
    data += f", {row['size']} px" if "size" in row else ""
    data += f", sub{row['splits']}" if "splits" in row else ""
    return f"| {row['row']} | {data} | {row['figure']} | `{row['recipe']}` | {here(row)} |\n"


def main(arguments: list[str]) -> int:
    """Exit status 1 where --check finds another page."""
    wanted = page(load())
    if arguments == ["--check"]:
        same = _PAGE.is_file() and _PAGE.read_text(encoding="utf-8") == wanted
        if not same:
            sys.stderr.write("docs/recipes.md is out of date: run `python docs/recipes.py`\n")
        return int(not same)
    _PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
