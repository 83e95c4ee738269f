"""Settings, dotted keys with a value and the place it came from, and how they become a Config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from common.config.objective import PRESETS
from common.config.renamed import explain_renamed
from common.config.schema import Config
from common.config.sections import LARGEST_INT
from common.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Keys whose value says where something lies; "" would be the current folder.
_PLACES = ("model.path", "data.path", "data.eval_path", "run_dir", "resume", "name", "cluster.address")
Schema = Mapping[str, Any]  # a JSON schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value that a recipe or the command line gives to one key."""

    key: str  # dotted: "rollout.engines"
    value: Any  # text, None, or a list or mapping of such: pydantic makes the type
    origin: str  # "recipe.yaml:12" or "command line"

    def __str__(self) -> str:
        shown = self.value if isinstance(self.value, str) else json.dumps(self.value)
        return f"{self.key} = {shown} ({self.origin})"


@cache
def keys() -> Mapping[str, Schema]:
    """Return every dotted key with its JSON schema, in the order of declaration."""
    whole = Config.model_json_schema()
    found: dict[str, Schema] = {}
    for name, schema in whole["properties"].items():
        if "$ref" in schema:
            section = whole["$defs"][schema["$ref"].rpartition("/")[2]]
            found |= {f"{name}.{key}": inner for key, inner in section["properties"].items()}
        else:
            found[name] = schema
    return found


@cache
def sections() -> frozenset[str]:
    """Return the names of all sections."""
    return frozenset(key.partition(".")[0] for key in keys() if "." in key)


class SectionKeys(NamedTuple):
    """A section of the configuration, or the keys that stand in none."""

    name: str  # "" for these
    about: str
    keys: Mapping[str, Schema]  # by dotted name


def list_sections() -> list[SectionKeys]:
    """Return every section with its keys, in the order of declaration; first the keys that stand in none."""
    found = []
    for name in ("", *(name for name in Config.model_fields if name in sections())):
        model = Config.model_fields[name].annotation if name else Config
        own = {key: schema for key, schema in keys().items() if key.rpartition(".")[0] == name}
        found.append(SectionKeys(name=name, about=model.__doc__ or "", keys=own))
    return found


def kind(schema: Schema, *, whole: bool = False) -> str:
    """Return what a key takes, in words: `integer >= 1`, `linear | cosine | constant`, `text or null`.

    Args:
        whole: also say the largest integer that fits, where nothing else bounds a key.
    """
    if "anyOf" in schema:
        return " or ".join(kind(option, whole=whole) for option in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(schema["enum"])
    if "items" in schema:
        return f"[{kind(schema['items'])}, ...]"
    if schema["type"] == "array":
        return "[" + ", ".join(kind(item) for item in schema["prefixItems"]) + "]"
    if schema["type"] == "object" and "propertyNames" in schema:
        value = kind(schema["additionalProperties"], whole=whole)
        return "{" + ", ".join(f"{name}: {value}" for name in schema["propertyNames"]["enum"]) + "}"
    if schema["type"] == "object":
        return "{name: " + kind(schema["additionalProperties"]) + ", ...}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    given = [(sign, schema[name]) for name, sign in signs.items() if name in schema]
    told = [(sign, bound) for sign, bound in given if whole or bound != LARGEST_INT]
    bounds = " and ".join(f"{sign} {bound if isinstance(bound, int) else f'{bound:g}'}" for sign, bound in told)
    word = {"string": "text", "boolean": "true or false", "null": "null"}.get(schema["type"], schema["type"])
    return f"{word} {bounds}".strip()


def default(schema: Schema) -> str:
    """Return the default of a key as a user writes it: `4`, `null`, `Qwen/Qwen2-VL-2B-Instruct`."""
    return json.dumps(schema["default"]).strip('"')


def describe(schema: Schema) -> str:
    """Return the docstring of a key as one line."""
    return " ".join(schema.get("description", "").split())


def resolve(settings: Iterable[Setting]) -> Config:
    """Return the configuration that these settings make over the class defaults; of two for one key the later holds.

    Raises:
        ConfigError: unknown keys, wrong values and impossible combinations, all of them, one line each.
    """
    given = _add_preset(_keep_last(settings))

    # Unknown keys are explained here. pydantic checks the others, and all problems are told at once.
    problems = [f"{setting}: {_explain_unknown(key)}" for key, setting in given.items() if key not in keys()]
    problems += [
        f"{setting}: holds a NUL, which no path and no name can"
        for setting in given.values()
        if _has_nul(setting.value)
    ]
    problems += [f"{key} is empty ({given[key].origin})" for key in _PLACES if key in given and given[key].value == ""]
    try:
        config = Config.model_validate(_nest(setting for key, setting in given.items() if key in keys()))
    except ValidationError as invalid:
        problems += dict.fromkeys(line for error in invalid.errors() for line in _explain(error, given))
    else:
        if not problems:
            return config
    raise ConfigError(
        "the configuration cannot be used",
        got="\n          ".join(problems),
        remedy="correct the keys named; `python -m learner.main --help` lists every key, its type and its default",
    )


def _keep_last(settings: Iterable[Setting]) -> dict[str, Setting]:
    """Return the setting that holds for each key, in the order they were made.

    `steps` and `epochs` say the same thing. Of two recipes, or a recipe and the command line, the later one's holds.
    Of one place both are kept, and refused by `Config`.
    """
    given: dict[str, Setting] = {}
    for setting in settings:
        given.pop(setting.key, None)
        given[setting.key] = setting
    lengths = [one for one in given.values() if one.key in ("steps", "epochs") and one.value is not None]
    places = {setting.origin.rpartition(":")[0] for setting in lengths}
    if len(places) == 2:
        del given[lengths[0].key]
    return given


def _has_nul(value: Any) -> bool:
    """Say whether a text, or one anywhere in a list or mapping, holds a NUL."""
    if isinstance(value, dict | list):
        return any(map(_has_nul, [*value, *value.values()] if isinstance(value, dict) else value))
    return isinstance(value, str) and "\0" in value


def _add_preset(given: dict[str, Setting]) -> dict[str, Setting]:
    """Return the settings with those of `objective.preset` where the key itself is not given."""
    chosen = given.get("objective.preset")
    if chosen is None or not isinstance(chosen.value, str):
        return given
    origin = f"{chosen.key} = {chosen.value}, {chosen.origin}"
    values = {f"objective.{key}": value for key, value in PRESETS.get(chosen.value, {}).items()}
    return {key: Setting(key=key, value=value, origin=origin) for key, value in values.items()} | given


def find_nearest(key: str) -> list[str]:
    """Return the keys or sections that an unknown key may have meant: alike as a whole, else in the last part."""
    if alike := get_close_matches(key, [*keys(), *sections()], n=1, cutoff=0.8):
        return alike
    last_parts = {known: known.rpartition(".")[2] for known in keys()}
    alike = get_close_matches(key.rpartition(".")[2], set(last_parts.values()), n=1, cutoff=0.7)
    return [known for known, last in last_parts.items() if last in alike]


def _nest(settings: Iterable[Setting]) -> dict[str, Any]:
    """Return the values as pydantic takes them: `rollout.engines = 2` as {"rollout": {"engines": 2}}."""
    tree: dict[str, Any] = {}
    for setting in settings:
        section, _, key = setting.key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = setting.value
    return tree


def _explain_unknown(key: str) -> str:
    if key in sections():
        return f"{key} is a section, give it a mapping or set one of its keys"
    if renamed := explain_renamed(key):
        return renamed
    meant = " or ".join(find_nearest(key))
    return f"no such key, perhaps you meant {meant}" if meant else "no such key"


def _explain(error: ErrorDetails, given: Mapping[str, Setting]) -> Iterator[str]:
    """Yield a line for each problem of one error of pydantic, with the places that the values came from."""
    if error["type"] == "value_error":  # of Config's checks of combinations: one misfit a line
        for misfit in str(error["ctx"]["error"]).splitlines():
            named = (given[key] for key in dict.fromkeys(re.findall(r"([\w.]+) = ", misfit)) if key in given)
            origins = ", ".join(f"{setting.key}: {setting.origin}" for setting in named)
            yield f"{misfit} ({origins or 'defaults'})"
    else:
        path = [str(part) for part in error["loc"]]
        key = ".".join(path[:2]) if path[0] in sections() else path[0]
        yield f"{given[key]}: must be {kind(keys()[key], whole=error['type'] == 'less_than_equal')}"
