"""Training on one machine by how long idle threads spin before they sleep (GOMP_SPINCOUNT).

    python benchmarks/waiting.py

Images/s of one job, and of two jobs at once (their sum), on the demo's digits.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import report

EPOCHS = 30


def start(data: Path, runs: Path, spins: str) -> subprocess.Popen[bytes]:
    """One training job; 300000 spins are OpenMP's default."""
    command = [sys.executable, "-m", "cli", "train", "--data", str(data), "--runs", str(runs)]
    command += ["--shard", "0", "--recipe", "digits", "--set", f"epochs={EPOCHS}"]
    env = {**os.environ, "GOMP_SPINCOUNT": spins}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, env=env)


def rate(data: Path, jobs: int, spins: str) -> float:
    """Images/s of all jobs together, from the epochs after the first."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [start(data, Path(folder) / str(job), spins) for job in range(jobs)]
        for process in processes:
            process.wait()
        rates: list[float] = []
        for log in Path(folder).rglob("log.jsonl"):
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            epochs = [row["images_per_s"] for row in rows if row["kind"] == "train"][1:]
            rates.append(len(epochs) / sum(1 / r for r in epochs))
        return sum(rates)


def main() -> None:
    """Prepare the digits, then each number of spins with one job and with two."""
    with tempfile.TemporaryDirectory() as folder:
        from pipeline.digits import write_digits

        images = write_digits(Path(folder) / "images")
        prepare = [sys.executable, "-m", "cli", "prepare", "demo", "--source", str(images)]
        subprocess.run([*prepare, "--splits", "4", "--out", folder], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        data = Path(folder) / "demo" / "sub4"
        figures = {
            f"jobs_{jobs}_spins_{spins}": round(rate(data, jobs, spins))
            for jobs in (1, 2)
            for spins in ("300000", "1000", "0")
        }
    report("waiting", unit="images/s of all jobs", **figures)


if __name__ == "__main__":
    main()
