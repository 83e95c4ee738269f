"""Read YAML and JSON that may be anybody's: what is small and grows, or is nested without end, is refused at once.

Every YAML and JSON text that Rollcall reads goes through this file, whoever wrote it.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

_LARGEST = 500_000  # bytes of a YAML text: PyYAML reads 100 kB a second
_MOST_NODES = 50_000  # of a YAML text, each alias counted as all that it stands for
_DEEPEST = 50  # levels of lists and mappings in each other
_LONGEST_NUMBER = 100  # characters


class BoundedLoader(yaml.SafeLoader):
    """Reads YAML of bounded size, depth and growth by aliases. Raises yaml.YAMLError for more, with the line."""

    def __init__(self, text: str | bytes) -> None:
        if len(text) > _LARGEST:
            raise yaml.YAMLError(f"the text has over {_LARGEST} bytes")
        super().__init__(text)
        self._depth = self._nodes = 0
        self._sizes: dict[yaml.Node, int] = {}  # nodes in and under each one that is complete

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Compose a node and count it. An alias counts as all the nodes that it stands for."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark, is_alias = event.start_mark, isinstance(event, yaml.AliasEvent)
        before = self._nodes
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _refusal(f"over {_DEEPEST} levels of lists and mappings", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1

        if node is not None and is_alias:
            if node not in self._sizes:
                raise _refusal("an alias stands for what it is a part of", mark)
            self._nodes += self._sizes[node]
        else:
            self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise _refusal(f"over {_MOST_NODES} values, each alias counted as all that it stands for", mark)
        if node is not None and not is_alias:
            self._sizes[node] = self._nodes - before
        return node

    def construct_scalar(self, node: Any) -> Any:
        """Refuse numbers without end, which take minutes to compute."""
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and len(node.value) > _LONGEST_NUMBER:
            raise _refusal(f"a number of over {_LONGEST_NUMBER} digits", node.start_mark)
        return super().construct_scalar(node)


def _refusal(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def read_bounded(file: Path) -> bytes:
    """Return the bytes of a YAML file, and one more than are allowed of one without end. Raises OSError."""
    refuse_pipe(file)
    with file.open("rb") as opened:
        return opened.read(_LARGEST + 1)


def refuse_pipe(file: Path) -> None:
    """Raise OSError for a pipe with a name, which may have no end and no beginning. The shell's, `<(...)`, pass."""
    if file.is_fifo() and file.resolve().exists():
        raise OSError(errno.EINVAL, "a pipe")


def parse_yaml(text: str | bytes) -> Any:
    """Return what a YAML text stands for. Raises yaml.YAMLError, or ValueError for what is no number or text."""
    loader = BoundedLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def parse_json(text: str | bytes, *, make_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return what a JSON text stands for. Raises ValueError for anything else, and for values nested too deeply.

    Args:
        make_object: makes an object of its keys and values, as they stand there; without it a later key wins.
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        value = json.loads(text, object_pairs_hook=make_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if text.count("[") + text.count("{") > _DEEPEST and not _is_shallow(value):
        raise ValueError(f"over {_DEEPEST} levels of lists and objects")
    return value


def _is_shallow(value: Any) -> bool:
    """Whether lists and objects are at most `_DEEPEST` levels deep; looks at them level by level."""
    level = [value]
    for _ in range(_DEEPEST):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, dict | list):
                inside.extend(item.values() if isinstance(item, dict) else item)
        level = inside
    return not any(isinstance(item, dict | list) for item in level)
