"""Networks that are not ours: `timm:NAME`, and `module:function` of the user's own.

A function is called as our builders are, with `classes`, `channels` and `size`, and model_args. Its
module is looked for in `folder`, then in the working directory, then where Python looks.
"""

import importlib
import inspect
import re
import site
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, cast

from torch import nn

from pipeline.errors import ConfigError

_TIMM = "timm:"
_OURS = ("cli", "pipeline", "trainer")
_GIVEN = ("classes", "channels", "size")
# Of timm.create_model: what the data decides, and what would fetch or load weights
_NOT_TO_SAY = {
    *("in_chans", "num_classes", "img_size", "features_only", "scriptable", "exportable"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
}
_UNKNOWN = re.compile(r"unexpected keyword argument(?:\(s\))?:? \[?'(\w+)'")
_ALIKE = 5  # names that an error offers at most


def is_other(name: str) -> bool:
    """Whether a recipe's `model` names a network that is not ours."""
    return ":" in name


def build(
    name: str, folder: Path | None, /, *, classes: int, channels: int, size: int, **args: Any
) -> nn.Module:
    """(B, channels, size, size) float → (B, classes), or so it should be: see `probe`."""
    if name.startswith(_TIMM):
        return _build_timm(name.removeprefix(_TIMM), classes, channels, size, args)
    function = _function(name, folder)
    if wrong := _unknown_arguments(function, args):
        raise ConfigError(wrong)
    network = function(classes=classes, channels=channels, size=size, **args)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"it returns a {type(network).__name__}, not a torch.nn.Module")
    return network


def timm_names() -> list[str]:
    """All of timm's networks, by the names that a recipe's `model` takes."""
    import timm

    return [_TIMM + name for name in timm.list_models()]


def home(name: str) -> Path | None:
    """The folder in which the module of a user's own network is, to be found there again from
    wherever a run goes on; None for all others, and for modules that are installed.
    """
    if not is_other(name) or name.startswith(_TIMM):
        return None
    top = _parts(name)[0].partition(".")[0]
    path = _place(_found(top, None))
    installed = [
        *site.getsitepackages(),
        site.getusersitepackages(),
        str(Path(site.__file__).parent),
    ]
    return None if path is None or str(path.parent) in installed else path.parent.absolute()


def source(name: str, folder: Path | None) -> Path | None:
    """The file of a user's own network."""
    if not is_other(name) or name.startswith(_TIMM):
        return None
    return Path(inspect.getfile(sys.modules[_function(name, folder).__module__]))


def _build_timm(
    name: str, classes: int, channels: int, size: int, args: dict[str, Any]
) -> nn.Module:
    import timm

    if not timm.is_model(name):
        alike = [_TIMM + n for n in get_close_matches(name, timm.list_models(), _ALIKE, 0.5)]
        near = f"; near it are {', '.join(alike)}" if alike else ""
        raise ConfigError(f"timm {timm.__version__} has none{near}; see `spectral networks WORDS`")
    for key in args:
        if key in _NOT_TO_SAY:
            raise ConfigError(f"model_args.{key} cannot be said: the data or this tool decides it")
    given = {"in_chans": channels, "num_classes": classes, **args}
    try:
        return timm.create_model(name, **given, img_size=size)
    except TypeError as error:
        if _unknown_argument(error) != "img_size":
            raise _argument_error(error) from error
    try:
        return timm.create_model(name, **given)
    except TypeError as error:
        raise _argument_error(error) from error


def _unknown_argument(error: TypeError) -> str | None:
    match = _UNKNOWN.search(str(error))
    return match[1] if match else None


def _argument_error(error: TypeError) -> Exception:
    key = _unknown_argument(error)
    return ConfigError(f"no model_args.{key} here ({error})") if key else error


def _unknown_arguments(function: Callable[..., Any], args: dict[str, Any]) -> str:
    """What is wrong with model_args, or with what the function takes."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return ""
    by_name = [
        n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if lacking := [name for name in _GIVEN if name not in by_name]:
        return f"it takes no {', '.join(lacking)}: it is called with {', '.join(_GIVEN)} by name"
    valid = [name for name in by_name if name not in _GIVEN]
    if unknown := [key for key in args if key not in valid]:
        said = f"valid are {', '.join(valid)}" if valid else "it has no arguments of its own"
        return f"no model_args.{unknown[0]} here; {said}"
    return ""


def _parts(name: str) -> tuple[str, str]:
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *function.split(".")]):
        raise ConfigError(
            f"network {name!r}: write timm:NAME, or module:function for one of your own"
        )
    return module, function


def _function(name: str, folder: Path | None) -> Callable[..., Any]:
    module, function = _parts(name)
    found: Any = _module(module, folder)
    for part in function.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{getattr(found, '__file__', module)} has no {function!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{function} is a {type(found).__name__}, not a function")
    return cast(Callable[..., Any], found)


def _module(name: str, folder: Path | None) -> Any:
    top = name.partition(".")[0]
    spec = _found(top, folder)
    place = _place(spec)
    if place is None:
        where = " or ".join(map(str, {Path.cwd(): None, **({folder: None} if folder else {})}))
        ours = f" ({top} is a package of this tool: give yours another name)" * (top in _OURS)
        raise ConfigError(f"no module {top!r} in {where}, nor on PYTHONPATH{ours}")
    loaded = sys.modules.get(top)
    if loaded is not None and _place(loaded.__spec__) not in (None, place):
        raise ConfigError(
            f"module {top} is {_place(loaded.__spec__)} for another network here, and {place} for "
            "this one: give one of them another name"
        )
    with _first_on_path(place.parent):
        return importlib.import_module(name)


def _found(top: str, folder: Path | None) -> ModuleSpec | None:
    if top in _OURS:
        return None
    first = [str(place) for place in (folder, Path.cwd()) if place is not None]
    return PathFinder.find_spec(top, first) or PathFinder.find_spec(top)


def _place(spec: ModuleSpec | None) -> Path | None:
    """A module's file, or a package's folder."""
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin and spec.has_location else None


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """While a module is loaded, what lies beside it comes first, as for a script; afterwards, for
    what it imports later, last: nothing of ours is hidden by it.
    """
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
