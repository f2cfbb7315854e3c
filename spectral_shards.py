"""Starts the command `spectral` with this tool's own packages, whatever else has their names.

`cli`, `pipeline` and `trainer` are common names. A folder of yours that is called so and stands on
PYTHONPATH or in the working directory would come before an installed package; not before these.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

OWN = ("cli", "pipeline", "trainer")
ROOT = Path(__file__).resolve().parent


class OwnPackages:
    """Where Python looks first: it finds our packages beside this file, and nothing else."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of one of ours; None for all others."""
        return PathFinder.find_spec(name, [str(ROOT)]) if name in OWN else None


# On import, since the processes that `prepare` starts import this module too, and only that
sys.meta_path.insert(0, OwnPackages)


def main() -> None:
    """Run the command."""
    from cli import main as command

    command(prog_name="spectral")


if __name__ == "__main__":
    main()
