"""What the command line says of how a run is carried out in; checked values out.

None of it changes what is computed, but for rounding: it is not part of a run's name.
"""

import re
import time
from dataclasses import dataclass

from pipeline.errors import ConfigError

_UNITS = {"": None, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Interval:
    """`500`: steps; `30s`, `5m`, `1h`: time."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """From what the user wrote."""
        match = re.fullmatch(r"([1-9]\d*)([smh]?)", text)
        if not match:
            raise ConfigError(f"--save-every {text}: write steps (500) or time (30s, 5m, 1h)")
        number, unit = int(match[1]), _UNITS[match[2]]
        return cls(steps=number) if unit is None else cls(seconds=number * unit)


class Due:
    """Whether an interval has passed since the last time."""

    def __init__(self, interval: Interval) -> None:
        self._interval, self._since = interval, time.monotonic()

    def after(self, step: int) -> bool:
        """Asked once after each step."""
        if self._interval.steps is not None:
            return step % self._interval.steps == 0
        return time.monotonic() - self._since >= (self._interval.seconds or 0)

    def done(self) -> None:
        """From now on it is counted anew."""
        self._since = time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Execution:
    """`feed`: auto, stream or resident. `save_every`: between checkpoints. `deterministic`: the
    same bits each time on a GPU too, slower. `compile_network`: by `torch.compile`.
    `log_to`: a tracker that gets the curves too. `stage`: a folder of the node's own disk, to which
    shards are copied first.
    """

    feed: str = "auto"
    save_every: Interval = Interval(seconds=300)
    deterministic: bool = False
    compile_network: bool = False
    log_to: str | None = None
    stage: str | None = None
