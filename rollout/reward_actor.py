"""The reward actor: runs functions nobody vouches for, and says by name which of them failed, and how."""

from __future__ import annotations

import math
import os
import reprlib
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from numbers import Real
from typing import Any

from common.answers import Mode
from rollout.rewards.loading import load_function

Scores = Mapping[str, tuple[float, ...]]  # function -> (G,)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTask:
    """A group as reward functions see it: texts and columns, neither tokens nor pixels."""

    prompt_id: str
    problem: str
    label: str
    columns: Mapping[str, Any]
    completions: tuple[str, ...]  # (G,)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFault:
    """Why a function gave a group no rewards."""

    function: str
    reason: str
    hung: bool = False  # its thread still runs, so this actor can score nothing more


class RewardActor:
    """Holds the functions and runs them in a thread of its own, each call under a deadline."""

    def __init__(self, functions: Sequence[str], mode: Mode, timeout_s: float) -> None:
        self._functions = {name: load_function(name) for name in functions}
        self._mode = mode
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")

    def pid(self) -> int:
        """Process id; an answer means that the functions are loaded."""
        return os.getpid()

    def score(self, tasks: Sequence[RewardTask], functions: Sequence[str]) -> list[Scores | RewardFault]:
        """One outcome a task, in order, for the first task and as many more as fit: none after a hang, and none
        is begun after `timeout_s`, so that the caller knows how long a silence may last."""
        last_start = time.monotonic() + self._timeout_s
        outcomes: list[Scores | RewardFault] = []
        for task in tasks:
            outcome = self._score(task, functions)
            outcomes.append(outcome)
            if (isinstance(outcome, RewardFault) and outcome.hung) or time.monotonic() > last_start:
                break
        return outcomes

    def _score(self, task: RewardTask, functions: Sequence[str]) -> Scores | RewardFault:
        scores: dict[str, tuple[float, ...]] = {}
        for name in functions:
            call = self._thread.submit(self._run, name, task)
            if not wait([call], timeout=self._timeout_s).done:
                return RewardFault(function=name, reason=f"took longer than {self._timeout_s:g} s", hung=True)
            error = call.exception()  # anything, SystemExit included
            if error is not None:
                return RewardFault(function=name, reason=_reason(error))
            scores[name] = call.result()
        return scores

    def _run(self, name: str, task: RewardTask) -> tuple[float, ...]:
        ours = {"prompt_id": task.prompt_id, "problem": task.problem, "label": task.label, "mode": self._mode}
        return _checked(self._functions[name](task.completions, **{**task.columns, **ours}), len(task.completions))


class _UnusableError(Exception):
    """A function returned something that is not one finite number a completion."""


def _checked(values: object, size: int) -> tuple[float, ...]:
    """(G,) floats out of what a function returned."""
    if not isinstance(values, Collection):
        raise _UnusableError(f"returned {type(values).__name__}, not one number a completion")
    if len(values) != size:
        raise _UnusableError(f"returned {len(values)} values for {size} completions")
    for index, value in enumerate(values):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise _UnusableError(f"returned {reprlib.repr(value)} for completion {index}, not a finite number")
    return tuple(float(value) for value in values)


def _reason(error: BaseException) -> str:
    if isinstance(error, _UnusableError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
