"""The reward actor: runs functions nobody vouches for, and says by name which of them failed, and how."""

from __future__ import annotations

import math
import os
import reprlib
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from numbers import Real
from typing import Any

from common.types import CandidateProbabilities
from rollout.rewards.loading import load_function

Scores = Mapping[str, tuple[float, ...]]  # function -> (G,)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTask:
    """A group as reward functions see it: what was said, and columns, no pixels."""

    prompt_id: str
    problem: str
    label: str
    columns: Mapping[str, Any]
    completions: tuple[str, ...]  # (G,)
    token_ids: tuple[tuple[int, ...], ...]  # (G,) of (C,) as sampled
    candidate_probabilities: (
        tuple[CandidateProbabilities, ...] | None
    )  # (G,) after each thought; None where no function asks


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFault:
    """Why a function gave a group no rewards."""

    function: str
    reason: str
    hung: bool = False  # its thread still runs, so this actor can score nothing more


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """The function call in progress."""

    index: int  # of its task
    function: str
    since: float


class RewardActor:
    """Holds the functions and runs them in a thread of its own, watched over from the caller's."""

    def __init__(self, functions: Sequence[str], constants: Mapping[str, Any], timeout_s: float) -> None:
        """`constants`: what every function is given by name, whatever the row."""
        self._functions = {name: load_function(name) for name in functions}
        self._constants = constants
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")
        self._running = _Running(index=0, function="", since=0.0)

    def pid(self) -> int:
        """Process id; an answer means that the functions are loaded."""
        return os.getpid()

    def score(self, tasks: Sequence[RewardTask], functions: Sequence[str]) -> list[Scores | RewardFault]:
        """One outcome a task, in order, for the first task and as many more as fit: none after a hang, and none
        is begun after `timeout_s`, so that the caller knows how long a silence may last."""
        outcomes: list[Scores | RewardFault] = []
        self._running = _Running(index=0, function=functions[0], since=time.monotonic())
        call = self._thread.submit(self._score_all, tasks, functions, outcomes)  # one handover for all: they are slow
        hung = self._watch(call)
        if hung is None:
            call.result()
            return outcomes
        late = RewardFault(function=hung.function, reason=f"took longer than {self._timeout_s:g} s", hung=True)
        return [*outcomes[: hung.index], late]

    def _watch(self, call: Future[None]) -> _Running | None:
        """Wait for the thread to finish, or for one function to outstay its time."""
        while True:
            running = self._running
            if wait([call], timeout=max(0.0, running.since + self._timeout_s - time.monotonic())).done:
                return None
            if running is self._running:
                return running

    def _score_all(
        self, tasks: Sequence[RewardTask], functions: Sequence[str], outcomes: list[Scores | RewardFault]
    ) -> None:
        last_start = time.monotonic() + self._timeout_s
        for index, task in enumerate(tasks):
            outcomes.append(self._score(index, task, functions))
            if time.monotonic() > last_start:
                break

    def _score(self, index: int, task: RewardTask, functions: Sequence[str]) -> Scores | RewardFault:
        ours = {
            name: getattr(task, name)
            for name in ("prompt_id", "problem", "label", "token_ids", "candidate_probabilities")
        }
        scores: dict[str, tuple[float, ...]] = {}
        for name in functions:
            self._running = _Running(index=index, function=name, since=time.monotonic())
            try:
                values = self._functions[name](task.completions, **{**task.columns, **self._constants, **ours})
                scores[name] = _check(values, len(task.completions))
            except BaseException as error:  # noqa: BLE001 - a stranger's function may raise anything, SystemExit too
                return RewardFault(function=name, reason=_reason(error))
        return scores


class _UnusableError(Exception):
    """A function returned something that is not one finite number a completion."""


def _check(values: object, size: int) -> tuple[float, ...]:
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
