"""What a user can ask of a network and not get: refused here, with what would do.

The registry puts the network's name before each message.
"""

from pipeline.errors import ConfigError


def require(holds: bool, said: str) -> None:
    """ConfigError with what is `said` unless it holds."""
    if not holds:
        raise ConfigError(said)


def smallest(size: int, least: int) -> None:
    """Inputs of less than `least` px would be shrunk to nothing."""
    require(size >= least, f"needs inputs of at least {least} px, these are {size}")


def positive(**args: int) -> None:
    """Each of these model_args is at least 1."""
    for key, value in args.items():
        require(value >= 1, f"model_args.{key} = {value}: at least 1")


def share(**args: float) -> None:
    """Each of these model_args is a probability below 1."""
    for key, value in args.items():
        require(0 <= value < 1, f"model_args.{key} = {value}: from 0 to below 1")


def blocks_per_stage(depth: int, unit: int, rest: int) -> int:
    """The n of a network of `unit`·n + `rest` layers."""
    count = (depth - rest) // unit
    examples = ", ".join(str(unit * n + rest) for n in (1, 3, 6, 18))
    fits = count >= 1 and count * unit + rest == depth
    require(fits, f"the depth is {unit}n+{rest}, such as {examples}")
    return count


def one_of(depth: int, known: tuple[int, ...]) -> None:
    """The depth is one of those published."""
    require(depth in known, f"the depth is one of {', '.join(map(str, known))}")
