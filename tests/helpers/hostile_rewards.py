"""Reward functions that misbehave, by dotted path, as a user's would."""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NOT_CALLABLE = 3
TOLD = "ROLLCALL_TEST_TOLD"  # environment variable with the path of a file


def length(completions: Sequence[str], *, label: str, **columns: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def prompt_number(completions: Sequence[str], *, prompt_id: str, **columns: Any) -> list[float]:
    return [float(prompt_id.rpartition("/")[2])] * len(completions)


def bonus(completions: Sequence[str], *, bonus: float, **columns: Any) -> list[float]:
    return [bonus] * len(completions)


def old_parameter(completions: Sequence[str], *, beliefs: Sequence[Any], **columns: Any) -> list[float]:
    raise AssertionError("it is refused before it is called")


def highest_probability(
    completions: Sequence[str], *, candidate_probabilities: Sequence[Any], **columns: Any
) -> list[float]:
    return [max(one.values()) for one in candidate_probabilities]


def heavy_imports(completions: Sequence[str], **columns: Any) -> list[float]:
    return [float("torch" in sys.modules or "vllm" in sys.modules)] * len(completions)


def raises(completions: Sequence[str], **columns: Any) -> list[float]:
    raise ValueError("no such taxonomy")


def exits(completions: Sequence[str], **columns: Any) -> list[float]:
    sys.exit(0)


def accuracy_until_told(completions: Sequence[str], *, label: str, **columns: Any) -> list[float]:
    """Accuracy; once there is a file at TOLD, rewards as large as they may be."""
    if not Path(os.environ[TOLD]).exists():
        return [float(label in completion) for completion in completions]
    return [1e15, -1e15, *[0.0] * (len(completions) - 2)]


def nan(completions: Sequence[str], **columns: Any) -> list[float]:
    return [float("nan")] * len(completions)


def infinite(completions: Sequence[str], **columns: Any) -> list[float]:
    return [float("inf")] * len(completions)


def huge(completions: Sequence[str], **columns: Any) -> list[float]:
    return [-1e39] * len(completions)  # finite in float64, infinite in float32


def large(completions: Sequence[str], **columns: Any) -> list[float]:
    return [1e15, -1e15]


def none(completions: Sequence[str], **columns: Any) -> None:
    return None


def holes(completions: Sequence[str], **columns: Any) -> list[float | None]:
    return [None for _ in completions]


def words(completions: Sequence[str], **columns: Any) -> list[str]:
    return ["1.0" for _ in completions]


def short(completions: Sequence[str], **columns: Any) -> list[float]:
    return [1.0]


def stream(completions: Sequence[str], **columns: Any) -> Iterator[float]:
    return (1.0 for _ in completions)


def slow(completions: Sequence[str], **columns: Any) -> list[float]:
    time.sleep(0.1)
    return [1.0] * len(completions)


def hangs(completions: Sequence[str], **columns: Any) -> list[float]:
    time.sleep(600)
    return [1.0] * len(completions)


def hangs_on_odd(completions: Sequence[str], *, prompt_id: str, **columns: Any) -> list[float]:
    return hangs(completions) if _odd(prompt_id) else [1.0] * len(completions)


def dies_on_odd(completions: Sequence[str], *, prompt_id: str, **columns: Any) -> list[float]:
    if _odd(prompt_id):
        os._exit(1)
    return [1.0] * len(completions)


def nan_on_odd(completions: Sequence[str], *, prompt_id: str, **columns: Any) -> list[float]:
    return [float("nan") if _odd(prompt_id) else 1.0] * len(completions)


def holds_the_interpreter(completions: Sequence[str], *, prompt_id: str, **columns: Any) -> list[float]:
    """A regular expression that backtracks for ages in C: no other thread of the process runs meanwhile."""
    if prompt_id == "train/1":
        re.fullmatch(r"(a+)+b", "a" * 60)
    return [1.0] * len(completions)


def dies_once(completions: Sequence[str], *, witness: str, **columns: Any) -> list[float]:
    """Killed from outside the first time, as by the kernel when memory runs out."""
    if not Path(witness).exists():
        Path(witness).touch()
        os._exit(1)
    return [1.0] * len(completions)


def no_columns(completions: Sequence[str], *, label: str) -> list[float]:
    return [1.0] * len(completions)


def _odd(prompt_id: str) -> bool:
    return int(prompt_id.rpartition("/")[2]) % 2 == 1


def needs_answer(completions: Sequence[str], *, answer: str, **columns: Any) -> list[float]:
    return [float(text == answer) for text in completions]


async def promised(completions: Sequence[str], **columns: Any) -> list[float]:
    """Would have to be awaited."""
    return [0.0 for _ in completions]


def yielded(completions: Sequence[str], **columns: Any) -> Iterator[float]:
    """Gives no list."""
    yield from (0.0 for _ in completions)


class AsyncObject:
    """An object whose call would have to be awaited."""

    async def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """Give zeros, some time."""
        return [0.0 for _ in completions]


class CallableObject:
    """An object that is a reward."""

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """Give the lengths."""
        return length(completions, **columns)


ASYNC_OBJECT, CALLABLE_OBJECT = AsyncObject(), CallableObject()
PARTIAL = functools.partial(length, unused=1)
