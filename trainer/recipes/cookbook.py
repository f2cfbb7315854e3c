"""The name of a recipe, or its file, and `key=value` settings in; a checked `Recipe` out.

Recipes that come with the tool lie in groups, recipes/GROUP/NAME.toml; NAME alone is enough. A
file may extend another of its group or, as `extends = "group/name"`, of another one; one whose
name begins with _ is only there for that. `variants` are named sets of changes: NAME@VARIANT.
"""

import hashlib
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from trainer.recipes.recipe import Recipe, build

_ROOT = Path(__file__).parent
_ALIKE = 5  # names that an error offers at most
_LONGEST, _DIGITS = 120, 8  # bytes of a label, and of the digest at the end of a longer one
_OWN_KEYS = ("extends", "variants")  # of a file, not of a recipe


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A recipe, its `label` for folders, and where each value comes from by its dotted key;
    values that are not in it are defaults.
    """

    recipe: Recipe
    label: str
    origins: dict[str, str] = field(compare=False)


def resolve(name: str, settings: tuple[str, ...] = ()) -> Resolved:
    """A recipe by name or file, with settings applied; its label is `NAME+key=value…` of what the
    settings change, in the order of the alphabet: equal recipes have one label.
    """
    path, variant = _located(name)
    values, origins = _merged(path, (path,))
    title = path.stem
    if variant is not None:
        _change(values, origins, _variant(path, variant), f"{_title(path)}@{variant}")
        title = f"{path.stem}@{variant}"
    before = deepcopy(values)
    given = dict(_parse_setting(setting) for setting in settings)
    _change(values, origins, given, "--set")
    _require_network(path, values)
    try:
        recipe = build(Recipe, values)
    except ConfigError as error:
        said = str(error).removeprefix("recipe:").strip()
        raise ConfigError(f"recipe {title}: {said}") from error
    return Resolved(recipe=recipe, label=_label(title, before, recipe, given), origins=origins)


def _label(title: str, before: dict[str, Any], recipe: Recipe, given: dict[str, Any]) -> str:
    """The name of a folder; what does not fit into one is a digest."""
    try:
        usual = dict(flat(asdict(build(Recipe, before))))
    except ConfigError:  # it is no recipe without the settings
        usual = {}
    found = dict(flat(asdict(recipe)))
    parts = [
        f"{key}={found.get(key, value)}".replace("/", "_")
        for key, value in sorted(given.items())
        if key not in usual or usual[key] != found.get(key, value)
    ]
    label = "+".join([title, *parts])
    if len(label.encode()) <= _LONGEST:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:_DIGITS]
    room = _LONGEST - _DIGITS - 1
    return f"{label.encode()[:room].decode(errors='ignore')}+{digest}"


def names() -> list[str]:
    """All recipes that come with the tool, variants included, as GROUP/NAME[@VARIANT]."""
    found = []
    for path in _shipped().values():
        title = _title(path)
        text = _parsed(path)
        runnable = "model" in _merged(path, (path,))[0]
        found += [title] if runnable else []
        found += [f"{title}@{variant}" for variant in text.get("variants", {})]
    return sorted(found)


def about(name: str) -> str:
    """The comment at the head of a recipe's file, in one line."""
    lines = _located(name)[0].read_text(encoding="utf-8").splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return " ".join(head)


@cache
def _shipped() -> dict[str, Path]:
    """Files by their names without group, which are unique."""
    return {path.stem: path for path in sorted(_ROOT.glob("*/*.toml")) if path.stem[0] != "_"}


def _title(path: Path) -> str:
    """GROUP/NAME of a recipe of ours, else the file."""
    return f"{path.parent.name}/{path.stem}" if path.is_relative_to(_ROOT) else str(path)


def _located(name: str) -> tuple[Path, str | None]:
    """A recipe's file, and the variant; a file's own name may have an @."""
    if Path(name).is_file():
        return Path(name), None
    stem, at, variant = name.rpartition("@")
    return (_find(stem), variant) if at else (_find(name), None)


def _find(stem: str) -> Path:
    known = _shipped()
    group, _, last = stem.rpartition("/")
    path = known.get(last)
    if path is not None and group in ("", path.parent.name):
        return path
    if Path(stem).is_file():
        return Path(stem)
    group = stem.strip("/")
    if any(path.parent.name == group for path in known.values()):
        raise ConfigError(f"{group} is a group of recipes: `spectral recipes {group}` lists them")
    alike = [_title(known[n]) for n in get_close_matches(last, known, _ALIKE, 0.5)]
    said = f"; near it are {', '.join(alike)}" if alike else ""
    raise ConfigError(
        f"no recipe {stem!r}: no such file, and none ships{said}; `spectral recipes` lists all"
    )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return _loaded(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is no valid TOML: {error}") from error


@cache
def _loaded(text: str) -> dict[str, Any]:
    """Kept, since a list of all recipes needs each file dozens of times: not to be changed."""
    return tomllib.loads(text)


def _merged(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of a file on top of those that it extends, and the origin of each."""
    content = _parsed(path)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if base := content.get("extends"):
        parent = _parent(path, str(base))
        if parent in seen:
            raise ConfigError(f"recipe {path} extends itself, through {base}")
        values, origins = _merged(parent, (*seen, parent))
    own = {key: value for key, value in content.items() if key not in _OWN_KEYS}
    _change(values, origins, dict(flat(own)), _title(path))
    return values, origins


def _parent(path: Path, base: str) -> Path:
    for parent in (path.parent / base, path.parent / f"{base}.toml", _ROOT / f"{base}.toml"):
        if parent.is_file():
            return parent
    if "@" in base:
        raise ConfigError(
            f"recipe {path} extends {base}: a variant cannot be extended, its file can"
        )
    try:
        return _find(base)
    except ConfigError as error:
        raise ConfigError(f"recipe {path} extends {base}: {error}") from error


def _require_network(path: Path, values: dict[str, Any]) -> None:
    """A file that leaves the network to its variants is nothing without one."""
    variants = _parsed(path).get("variants", {})
    if "model" not in values and variants:
        known = ", ".join(f"{path.stem}@{variant}" for variant in variants)
        raise ConfigError(f"recipe {_title(path)} takes a variant: one of {known}")


def _variant(path: Path, variant: str) -> dict[str, Any]:
    variants = _parsed(path).get("variants", {})
    if variant not in variants:
        near = [name for name in variants if variant and name.startswith(variant)]
        near = near or get_close_matches(variant, variants, _ALIKE, 0.5) or list(variants)[:_ALIKE]
        more = f" and more, {len(variants)} in all" if len(near) < len(variants) else ""
        raise ConfigError(
            f"recipe {_title(path)} has no variant {variant!r}; it has "
            f"{', '.join(near) or 'none'}{more}"
        )
    return dict(flat(variants[variant]))


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values that are no tables; an empty table stays one."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, {} if value == {} else value  # not the file's own, which is kept


def _change(
    values: dict[str, Any], origins: dict[str, str], changes: dict[str, Any], origin: str
) -> None:
    """Apply them; what they put in the place of others, these lose."""
    if "model" in changes and values.get("model") not in (None, changes["model"]):
        values.pop("model_args", None)  # those of another network
    for key, other in (("epochs", "iterations"), ("iterations", "epochs")):
        if changes.get(key) and other not in changes:
            values.pop(other, None)  # a run lasts one or the other
    for key, value in changes.items():
        _apply(values, key, value)
        origins[key] = origin


def _parse_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {setting}: write it as key=value, such as optimizer.lr=0.05")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def _apply(values: dict[str, Any], key: str, value: object) -> None:
    *tables, last = key.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {key}: {table} is no table")
    values[last] = value
