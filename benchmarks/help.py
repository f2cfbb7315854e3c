"""How long `spectral --help` takes, beside Python's own start.

python benchmarks/help.py [--runs 10]
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from common import report, seconds

ROOT = Path(__file__).parents[1]


def once(*words: str) -> float:
    """Seconds of one start of Python."""
    command = [sys.executable, *words]
    return seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))


def main() -> None:
    """Medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = range(parser.parse_args().runs)
    report(
        "help",
        help_s=round(statistics.median(once("-m", "cli", "--help") for _ in runs), 3),
        prepare_help_s=round(
            statistics.median(once("-m", "cli", "prepare", "-h") for _ in runs), 3
        ),
        python_s=round(statistics.median(once("-c", "pass") for _ in runs), 3),
    )


if __name__ == "__main__":
    main()
