"""What is left out of a process is brought along without us, is not loaded with us, and stands in harmlessly."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from common.lean_imports import COMPILER, UNUSED_BY_TRANSFORMERS, leave_out, pause_collector

READ = """
import json, sys
from common.lean_imports import leave_out_compiler, import_transformers
lean, folder, watched = json.loads(sys.argv[1])
if lean:
    leave_out_compiler()
    import_transformers()
from transformers import AutoConfig, AutoProcessor
import transformers.modeling_utils
AutoConfig.from_pretrained(folder, trust_remote_code=False)
AutoProcessor.from_pretrained(folder, trust_remote_code=False)
print(json.dumps([name for name in watched if getattr(sys.modules.get(name), "__file__", None)]))
"""


def find_loaded(lean: bool, folder: Path) -> set[str]:
    """Read a model's configuration and processor in a fresh process; return what of our lists that loads."""
    words = json.dumps([lean, str(folder), [*UNUSED_BY_TRANSFORMERS, *COMPILER]])
    done = subprocess.run([sys.executable, "-c", READ, words], check=True, capture_output=True, text=True, timeout=120)
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(loaded)


@pytest.mark.slow
def test_a_model_is_read_without_what_nobody_uses(digits_model: Path) -> None:
    assert find_loaded(True, digits_model) == set()


@pytest.mark.slow
def test_transformers_brings_along_what_we_leave_out(digits_model: Path) -> None:
    """What it no longer brings can go from our lists."""
    assert find_loaded(False, digits_model) == {*UNUSED_BY_TRANSFORMERS, *COMPILER}


@pytest.fixture
def nowhere() -> Iterator[Any]:
    """A module of a package that is left out, and is nowhere to be found."""
    bring_back = leave_out("nowhere")
    yield import_module("nowhere.at.all")
    bring_back()


def test_a_decorator_that_is_left_out_changes_nothing(nowhere: Any) -> None:
    def function() -> None: ...

    assert nowhere.decorate(function) is function
    assert nowhere.decorate(function, True) is function
    assert nowhere.decorate(recursive=False)(function) is function
    assert nowhere.deep.decorate(None, reason="?")(function) is function


def test_a_class_that_is_left_out_is_inherited_from_and_asked_about(nowhere: Any) -> None:
    class Child(nowhere.Parent):  # type: ignore[misc]
        def __init__(self, value: int) -> None:
            self.value = value

    assert Child(3).value == 3
    assert isinstance(Child(3), nowhere.Parent)
    assert not isinstance(3, nowhere.Parent)
    assert not hasattr(Child, "anything")
    assert TypeAdapter(list[nowhere.Parent]).validate_python([3]) == [3]


def test_a_call_of_what_is_left_out_is_no_silent_no_op(nowhere: Any) -> None:
    assert nowhere.forget() is None
    with pytest.raises(RuntimeError, match=r"nowhere\.at\.all\.compute was left out"):
        nowhere.compute(3)


def test_what_was_left_out_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left_out_and_back.py").write_text("answer = 42")
    monkeypatch.syspath_prepend(tmp_path)
    bring_back = leave_out("left_out_and_back")
    assert import_module("left_out_and_back").answer != 42
    bring_back()
    assert import_module("left_out_and_back").answer == 42


def test_the_collector_waits_and_then_works() -> None:
    with pause_collector():
        assert not gc.isenabled()
    assert gc.isenabled()
