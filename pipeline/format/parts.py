"""A preparation in parts, on disk: plan.json, which all parts share, and what each of them leaves.

DIRECTORY/parts/ holds plan.json, the index of the source, and a folder for each part, from 1 on,
with the shards of its slice of the index and, when it has finished, done.json. That has the digest
of the plan: what was made by another plan counts for nothing. Part 0 is the listing alone.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DamagedError
from pipeline.files import from_json, sync_directory, write_beside, write_json

FOLDER, PLAN, DONE = "parts", "plan.json", "done.json"
_AGAIN = "remove that folder, or start over with --overwrite"


@dataclass(frozen=True)
class Parts:
    """The plan of a directory. `index`: the folder of the listing, within parts/."""

    directory: Path
    plan: dict[str, Any]

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.plan["parts"])

    @property
    def digest(self) -> str:
        """Of the plan, as finished parts carry it."""
        text = json.dumps(self.plan, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def index(self) -> Path:
        """Where the listing lies."""
        return self.directory / FOLDER / index_folder(self.plan["index"]["rows_digest"])

    def folder(self, part: int) -> Path:
        """Where a part writes."""
        return self.directory / FOLDER / f"{part:0{len(str(self.count))}d}"

    def bounds(self, part: int) -> tuple[int, int]:
        """Its first row of the index, and the one behind its last."""
        rows = int(self.plan["index"]["rows"])
        return rows * (part - 1) // self.count, rows * part // self.count

    def done(self, part: int) -> dict[str, Any] | None:
        """What a finished part has made; None of one that has not finished by this plan."""
        path = self.folder(part) / DONE
        try:
            content: dict[str, Any] = from_json(path.read_bytes())
            if content["plan"] != self.digest:
                return None
            rows = tuple(content["rows"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{path} is damaged: {_AGAIN}") from error
        if rows != self.bounds(part):
            raise DamagedError(
                f"{path.parent} holds another part (rows {rows[0]} to {rows[1]} of the list): "
                "remove that folder, run this part again"
            )
        return content

    def finish(self, part: int, content: dict[str, Any]) -> None:
        """Write done.json: all else is on the disk."""
        write_json(self.folder(part) / DONE, {"plan": self.digest, **content})
        sync_directory(self.folder(part))

    def missing(self) -> list[int]:
        """Parts that have not finished."""
        return [part for part in range(1, self.count + 1) if self.done(part) is None]


def index_folder(digest: str) -> str:
    """Named by its content: two that list the same source at once make the same."""
    return f"index-{digest[:16]}"


def load(directory: Path) -> Parts | None:
    """The parts of a directory; None if it is not prepared in parts."""
    path = directory / FOLDER / PLAN
    try:
        content = from_json(path.read_bytes())
        return Parts(directory, {**content, "parts": int(content["parts"])})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: start over with --overwrite") from error


def create(directory: Path, plan: dict[str, Any]) -> None:
    """Write the plan unless there is one: whoever comes first decides."""
    path = directory / FOLDER / PLAN
    content = (json.dumps(plan, indent=1) + "\n").encode()
    own = write_beside(path.with_name(f"{PLAN}.{os.uname().nodename}.{os.getpid()}"), content)
    try:
        with suppress(FileExistsError):
            _link(own, path, content)
    finally:
        own.unlink()
    sync_directory(path.parent)


def _link(own: Path, path: Path, content: bytes) -> None:
    """Appear whole under a name that nothing has, or fail: also on a network's file systems."""
    try:
        os.link(own, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without links
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def parse(text: str) -> tuple[int, int]:
    """`3/64`: the part and how many there are; `0/64` lists the source."""
    part, slash, count = text.partition("/")
    plain = text.isascii() and part.isdecimal() and count.isdecimal()
    if not (slash and plain and 0 <= int(part) <= int(count) > 0):
        raise ConfigError(f"--part {text}: write 3/64 for the third of 64, or 0/64 to list only")
    return int(part), int(count)


def progress(folder: Path) -> int:
    """How much a part that was interrupted has noted, in rows; or a merge, in shards."""
    try:
        _, _, record = (folder / "journal" / "state").read_bytes().partition(b" ")
        return int(from_json(record)["tally"]["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        return (folder / "merged.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0
