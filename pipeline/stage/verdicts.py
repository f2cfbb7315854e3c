"""Images that hang, crash or exhaust a worker: found once, kept in the journal, left out from then
on, so that neither the rest of a run nor a resumed one meets them again.
"""

from pathlib import Path
from typing import Self

from pipeline.sources.index import Place
from pipeline.stage.journal import Journal

NAME = "verdicts.jsonl"


class Verdicts:
    """Reasons by place. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / NAME)
        self._reasons = {
            Place(*record["place"]): record["reason"] for record in self._journal.read()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def add(self, place: Place, reason: str) -> None:
        """Leave this image out; it is on the disk when this returns."""
        self._journal.append({"place": list(vars(place).values()), "reason": reason})
        self._reasons[place] = reason

    def among(self, places: list[Place]) -> dict[int, str]:
        """Reasons by position in the list."""
        if not self._reasons:
            return {}
        found = ((i, self._reasons.get(place)) for i, place in enumerate(places))
        return {i: reason for i, reason in found if reason is not None}
