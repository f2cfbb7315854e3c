"""The cells of the accuracy study: which networks are trained on what, and fused into what.

A cell's cost is that of its training in units of the whole-image network's: one unit is `epochs`
epochs of `ours/air` on 32-px images. How many steps each network gets follows from its share of the
cell's cost and from its FLOPs a sample, counted by torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# The folder of prepared data by name: what `spectral prepare cifar10` is given
DATA: dict[str, dict[str, Any]] = {
    "whole": {"splits": 1, "codec": "raw"},
    "sub4": {"splits": 4, "transform": "dct"},
    "sub4-dct2": {"splits": 4, "transform": "dct2"},
    "sub4-none": {"splits": 4, "transform": "none"},
    "sub4-block": {"splits": 4, "transform": "dct", "layout": "block"},
    "sub16": {"splits": 16, "transform": "dct"},
    "sub16-dct2": {"splits": 16, "transform": "dct2"},
}


@dataclass(frozen=True)
class Member:
    """One network of a cell. share: of the cell's cost. after: the place in the cell of the network
    whose weights it starts from.
    """

    data: str
    planes: tuple[int, ...]
    share: float
    width: float = 1.0  # of the study's
    pools: int = -1
    seed: int = 0  # added to the cell's
    after: int | None = None


@dataclass(frozen=True)
class Cell:
    """Networks that are fused, and why. cost: in units."""

    name: str
    why: str
    members: tuple[Member, ...] = field(repr=False)
    cost: float = 1.0

    def at(self, cost: float) -> "Cell":
        """The same for another cost."""
        return Cell(self.name, self.why, self.members, cost)


def _planes(data: str, count: int, **args: Any) -> tuple[Member, ...]:
    """A network a plane, each with the same share."""
    return _groups(data, [(k,) for k in range(count)], **args)


def _groups(data: str, groups: Sequence[tuple[int, ...]], **args: Any) -> tuple[Member, ...]:
    return tuple(Member(data, group, 1 / len(groups), **args) for group in groups)


def _plan(data: str, first: float, others: tuple[int, ...], **args: Any) -> tuple[Member, ...]:
    """Plane 0 with a share of its own, the others start from its weights."""
    rest = (1 - first) / len(others)
    return (
        Member(data, (0,), first, **args),
        *(Member(data, (k,), rest, after=0, **args) for k in others),
    )


_ALL4, _ALL16 = tuple(range(4)), tuple(range(16))
# sub16 in 2×2 corners of its 4×4 frequencies, k = 4·row + column; low ones first
_CORNERS = [(0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)]
_DEEP = "the first block keeps the side"
WHOLE = Cell("whole", "the baseline", (Member("whole", (0,), 1),))
MAIN = (
    WHOLE,
    Cell("sub4 stacked", "all planes in one network", (Member("sub4", _ALL4, 1),)),
    Cell("sub4 fused", "a network a plane, as the paper", _planes("sub4", 4)),
    Cell("sub4 plan", "plane 0 first, the others from it", _plan("sub4", 0.5, (1, 2, 3))),
    Cell("4 whole fused", "the fair ensemble",
         tuple(Member("whole", (0,), 0.25, seed=1000 * i) for i in range(4))),
    Cell("plane 0", "is the rest worth anything?", (Member("sub4", (0,), 1),)),
    Cell("4 seeds of plane 0", "the ensemble or the spectrum?",
         tuple(Member("sub4", (0,), 0.25, seed=1000 * i) for i in range(4))),
    Cell("sub4-dct2 fused", "which transform", _planes("sub4-dct2", 4)),
    Cell("sub4-dct2 stacked", "which transform", (Member("sub4-dct2", _ALL4, 1),)),
)  # fmt: skip
MORE = (
    Cell("sub16 fused", "16 jobs, half as wide", _planes("sub16", 16, width=0.5)),
    Cell("sub16 stacked", "all 16 in one network", (Member("sub16", _ALL16, 1),)),
    Cell("sub16 4 groups", "a few groups fused", _groups("sub16", _CORNERS, width=0.5)),
    Cell("sub16 plan", "plane 0 first, half as wide",
         _plan("sub16", 0.4, _ALL16[1:], width=0.5)),
    Cell("sub16 low 4", "the four lowest of sub16, stacked", (Member("sub16", _CORNERS[0], 1),)),
    Cell("sub4-dct2 plan", "plane 0 first, the others from it",
         _plan("sub4-dct2", 0.5, (1, 2, 3))),
    Cell("sub4 2 groups", "a few groups fused", _groups("sub4", [(0, 1), (2, 3)])),
    Cell("sub4-none fused", "which transform", _planes("sub4-none", 4)),
    Cell("sub4-none stacked", "which transform", (Member("sub4-none", _ALL4, 1),)),
    Cell("sub4-block fused", "which layout", _planes("sub4-block", 4)),
    Cell("sub16-dct2 fused", "16 jobs, half as wide", _planes("sub16-dct2", 16, width=0.5)),
    Cell("sub4 deep stacked", _DEEP, (Member("sub4", _ALL4, 1, pools=2),)),
    Cell("sub4 deep fused", _DEEP, _planes("sub4", 4, pools=2)),
    Cell("plane 0 deep", _DEEP, (Member("sub4", (0,), 1, pools=2),)),
)  # fmt: skip
# Of the default transform: where one network on all planes, some groups and one a plane belong
DCT2 = (
    Cell("sub4-dct2 2 groups", "a few groups fused", _groups("sub4-dct2", [(0, 1), (2, 3)])),
    Cell("sub4-dct2 wide 0", "plane 0 wider than the others",
         (Member("sub4-dct2", (0,), 0.5),
          *(Member("sub4-dct2", (k,), 1 / 6, width=0.5) for k in (1, 2, 3)))),
    Cell("sub16-dct2 stacked", "all 16 in one network", (Member("sub16-dct2", _ALL16, 1),)),
    Cell("sub16-dct2 4 groups", "a few groups fused",
         _groups("sub16-dct2", _CORNERS, width=0.5)),
    Cell("sub16-dct2 low 4", "the four lowest of sub16, stacked",
         (Member("sub16-dct2", _CORNERS[0], 1),)),
    Cell("sub16-dct2 plan", "plane 0 first, half as wide",
         _plan("sub16-dct2", 0.4, _ALL16[1:], width=0.5)),
)  # fmt: skip
TWO_STACKED = Cell(
    "2 sub4-dct2 stacked", "seeds of all planes in one network",
    tuple(Member("sub4-dct2", _ALL4, 0.5, seed=1000 * i) for i in range(2)),
)  # fmt: skip
_OF_DCT2 = ("sub4-dct2 stacked", "sub4-dct2 plan", "sub4-dct2 fused")


def cells() -> list[Cell]:
    """In the order in which they decide something. A cell of no named transform is of `dct`."""
    first, chosen = MAIN[:7], [c for c in (*MAIN, *MORE) if c.name in _OF_DCT2]
    four = [cell.at(4.0) for cell in first]
    return [
        *MAIN,
        *MORE[:7],
        *(cell.at(0.25) for cell in first),
        *four[:3],
        four[4],  # an ensemble of whole images
        *DCT2,
        *(cell.at(cost) for cost in (0.25, 4.0) for cell in chosen),
        TWO_STACKED.at(4.0),
        *MORE[7:],
        four[3],
        *four[5:],
        *(cell.at(4.0) for cell in MORE if "deep" in cell.name),
    ]
