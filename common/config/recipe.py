"""From YAML to settings: recipe files, with the recipes they extend, and values of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from common.config.foreign_text import BoundedLoader, read_bounded
from common.config.settings import Setting, keys, sections
from common.errors import ConfigError, raise_as

_EXTENDS = "extends"
_NULLS = ("null", "~")


class _TextLoader(BoundedLoader):
    """Reads the structure only: a plain scalar is null or text, and pydantic makes the types.

    YAML 1.1 would read `5e-4` as text, a revision of digits as a number, and `no` as false. A key that is given twice,
    which YAML libraries let pass, is an error.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (declared by PyYAML)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse keys that are not one word, or given twice."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be one word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return node

    def settings(self, node: yaml.MappingNode, prefix: str, origin: Callable[[yaml.Node], str]) -> Iterator[Setting]:
        """Yield every leaf under `node` as a setting; sections are entered, any other mapping is one value."""
        self.flatten_mapping(node)
        for key_node, value_node in node.value:
            key = prefix + str(key_node.value)
            if key in sections() and isinstance(value_node, yaml.MappingNode):
                yield from self.settings(value_node, f"{key}.", origin)
                continue
            value = self.construct_object(value_node, deep=True)
            if key not in sections() or value is not None:  # a section whose keys are all commented out is no setting
                yield Setting(key=key, value=value, origin=origin(key_node))


def read_recipes(paths: Iterable[Path]) -> list[Setting]:
    """Return the settings of recipe files, each with its line; of two for one key the later is to hold.

    A recipe may begin with `extends: base.yaml`, or a list of such files beside it or below. Their settings come before
    its own. A file that several recipes extend is read once: a second time it would undo what the first one changed.

    Raises:
        ConfigError: a file cannot be read, is no YAML (with the line) or is no mapping; or a recipe extends itself, or
            a file outside its folder.
    """
    read: set[Path] = set()
    return [setting for path in paths for setting in _with_bases(path, read, ())]


def _with_bases(path: Path, read: set[Path], extenders: tuple[Path, ...]) -> Iterator[Setting]:
    """Yield the settings of a recipe after those it extends.

    `extenders` are the recipes, resolved, that lead to this one and that it must not extend.
    """
    own = _read_file(path, extender=extenders[-1] if extenders else None)
    read.add(path.resolve())
    chain = (*extenders, path.resolve())
    for setting in own:
        if setting.key == _EXTENDS:
            for base in _bases(setting, path):
                if base.resolve() in chain:
                    raise ConfigError(
                        f"recipe {path} extends itself",
                        got=" -> ".join(file.name for file in (*chain, base)),
                        remedy=f"break the circle at {setting.origin}",
                    )
                if base.resolve() not in read:
                    yield from _with_bases(base, read, chain)
    yield from (setting for setting in own if setting.key != _EXTENDS)


def _bases(setting: Setting, path: Path) -> Iterator[Path]:
    """Yield the files that `extends` names. Raises ConfigError for anything else than file names beside or below."""
    names = setting.value if isinstance(setting.value, list) else [setting.value]
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(
                f"{_EXTENDS} in recipe {path} takes a file name or a list of them",
                got=setting,
                remedy=f"write {_EXTENDS}: base.yaml",
            )
        base = path.parent / name
        with raise_as(ConfigError, f"{_EXTENDS} in recipe {path} names no file", remedy=f"correct {name!r}"):
            inside = base.resolve().is_relative_to(path.parent.resolve())
        if not inside:
            raise ConfigError(
                f"recipe {path} extends a file outside its folder",
                got=setting,
                remedy="name one that lies beside it or below, or give both with --config",
            )
        yield base


def _read_file(path: Path, *, extender: Path | None) -> list[Setting]:
    """Return the settings of one file, `extends` among them. Raises ConfigError naming file, line and extender."""
    by = f" (extended by {extender.name})" if extender else ""
    with raise_as(ConfigError, f"recipe {path}{by} cannot be read", remedy="check the path"):
        text = read_bounded(path)
    with raise_as(ConfigError, f"recipe {path}{by} is not valid", remedy="write a mapping of keys, as YAML in UTF-8"):
        try:
            loader = _TextLoader(text)
            root = loader.get_single_node()
            if root is None:
                return []
            if not isinstance(root, yaml.MappingNode):
                raise yaml.constructor.ConstructorError(None, None, "a recipe is a mapping of keys", root.start_mark)
            _refuse_two_spellings(root)
            return list(loader.settings(root, "", lambda node: f"{path}:{node.start_mark.line + 1}"))
        except yaml.YAMLError as error:
            raise ConfigError(
                f"recipe {path}{by} is not valid", got=_where(error), remedy="correct that line"
            ) from error


def _refuse_two_spellings(root: yaml.MappingNode) -> None:
    """Raise ConstructorError for a key that stands in its section and again as `section.key`."""
    marks = {str(key.value): key.start_mark for key, _ in root.value}
    for name, section in root.value:
        if name.value in sections() and isinstance(section, yaml.MappingNode):
            for key, _ in section.value:
                if (spelled := f"{name.value}.{key.value}") in marks:
                    fault = f"key {spelled} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, fault, marks[spelled])


def read_override(key: str, text: str) -> list[Setting]:
    """Return the settings of one `key=text` of the command line.

    Keys that take text (paths, questions) take it as it is. Others read it as YAML, so lists and mappings work. What
    YAML cannot read stays text, for the key's type to refuse.
    """
    origin = "command line"
    if key not in sections() and _takes_text(key):
        nullable = {"type": "null"} in keys().get(key, {}).get("anyOf", ())
        return [Setting(key=key, value=None if nullable and text in _NULLS else text, origin=origin)]
    try:
        loader = _TextLoader(text)
        node = loader.get_single_node()
        if key in sections() and isinstance(node, yaml.MappingNode):
            return list(loader.settings(node, f"{key}.", lambda _: origin))
        value = text if node is None else loader.construct_object(node, deep=True)
    except yaml.YAMLError:
        value = text
    return [Setting(key=key, value=value, origin=origin)]


def _takes_text(key: str) -> bool:
    schema = keys().get(key, {"type": "string"})  # an unknown key is shown as it was typed
    return any(option.get("type") == "string" and "enum" not in option for option in schema.get("anyOf", [schema]))


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {getattr(error, 'problem', error)}" if mark else str(error)
