"""Small texts that would grow, hang or break the stack are refused in a moment; plain ones are read as ever."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config.foreign_text import parse_json, parse_yaml
from common.config.recipe import read_recipes
from common.errors import ConfigError
from learner.report.data import _is_locked_by_another
from learner.report.rows import Reader
from learner.storage.files import read_jsonl

LAUGHS = "a0: &a0 [1, 2]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGED = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
BOMBS = {
    "aliases": LAUGHS,
    "merged mappings": MERGED,
    "itself": "a: &a [*a]",
    "itself below": "data: &a {aliases: {x: *a}}",
    "deep in flow": "data: " + "[" * 100_000,
    "deep in block": "".join(" " * n + "a:\n" for n in range(2_000)),
    "deep mapping": "data: " + "{a: " * 100_000,
    "too long": "data: " + "x" * 10_000_000,
    "many values": "data: [" + "1," * 240_000 + "]",
    "number without end": "seed: " + "1:" * 200_000 + "1",
    "hexadecimal without end": "seed: 0x" + "f" * 400_000,
}


@contextmanager
def in_a_moment(seconds: float = 8.0) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_a_yaml_bomb_is_refused_in_a_moment(text: str) -> None:
    with in_a_moment(), pytest.raises((yaml.YAMLError, ValueError)):
        parse_yaml(text)


@pytest.mark.parametrize("text", [BOMBS[name] for name in BOMBS if "without end" not in name])
def test_a_recipe_that_is_a_bomb_is_one_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with in_a_moment(), pytest.raises(ConfigError, match=r"recipe\.yaml is not valid"):
        read_recipes([tmp_path / "recipe.yaml"])


def test_a_recipe_without_end_is_refused() -> None:
    with in_a_moment(), pytest.raises(ConfigError, match="not valid"):
        read_recipes([Path("/dev/zero")])


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_a_report_names_a_bomb_and_goes_on(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    reader = Reader(tmp_path)
    with in_a_moment():
        assert reader.read_yaml("config.yaml") == {}
    assert len(reader.faults) == 1 and reader.faults[0].startswith("config.yaml: unreadable")


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_report_waits_for_no_pipe_or_device(tmp_path: Path, name: str, kind: str) -> None:
    os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).symlink_to("/dev/zero")
    reader = Reader(tmp_path)
    with in_a_moment():
        read = {"yaml": reader.read_yaml, "json": reader.read_json, "jsonl": reader.read_rows}
        assert list(read[name.partition(".")[2]](name)) == []
    assert reader.faults == [f"{name}: no plain file"]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("levels", [60, 900, 100_000])
def test_deep_json_is_no_json(tmp_path: Path, opening: str, levels: int) -> None:
    closing = "]" if opening == "[" else "}"
    deep = opening * levels + "1" + closing * levels
    with pytest.raises(ValueError, match=r"deep|levels"):
        parse_json(deep)
    with pytest.raises(ValueError, match=r"deep|levels"):
        parse_json(deep.encode())
    (tmp_path / "rows.jsonl").write_text(f'{{"step": 1}}\n{deep}\n[1]\n{{"step": 2}}\n')
    assert [row["step"] for row in read_jsonl(tmp_path / "rows.jsonl")] == [1, 2]


@pytest.mark.parametrize("value", [None, 1, "a[[[[", [1, [2, {"a": [3]}]], {"a": "[" * 200}, [[]] * 200])
def test_plain_values_are_read_as_their_libraries_read_them(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_yaml(yaml.safe_dump(value)) == value


def test_aliases_of_a_reasonable_size_are_read() -> None:
    text = "base: &base {a: 1, b: [x, y]}\nmore: {<<: *base, c: *base}\n"
    assert parse_yaml(text) == yaml.safe_load(text)


def test_a_lock_that_is_a_pipe_is_no_lock(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with in_a_moment():
        assert not _is_locked_by_another(tmp_path / ".lock")
