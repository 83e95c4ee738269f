"""The reward actor: runs functions that may do anything, and says by name which of them failed, and how."""

from __future__ import annotations

import logging
import math
import os
import reprlib
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any

from common.process import ThreadReport, describe_threads, end_with_raylet
from common.shared_folder import SharedFolder, find_local
from common.telemetry.actor import ActorTelemetry
from common.telemetry.reporting import Reporting
from common.types import CandidateProbabilities
from rollout.rewards.loading import GIVEN_OF_TASK, load_function

LARGEST_REWARD = 1e15  # the learner takes deviations in float32, whose squares overflow from 1.8e19 on
FETCH_TIMEOUT_S = 250.0  # for each piece of a reward model
NO_MODELS: Mapping[str, str | SharedFolder] = MappingProxyType({})
Scores = Mapping[str, tuple[float, ...]]  # function -> (G,)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTask:
    """A group as reward functions see it: completions and columns, no pixels."""

    prompt_id: str
    problem: str
    label: str
    columns: Mapping[str, Any]
    completions: tuple[str, ...]  # (G,)
    token_ids: tuple[tuple[int, ...], ...]  # (G,) of (C,) as sampled
    candidate_probabilities: tuple[CandidateProbabilities, ...] | None  # (G,) after each thought; None: not asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFault:
    """Why a function gave a group no rewards."""

    function: str
    reason: str
    hung: bool = False  # its thread still runs, so this actor can score nothing more


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """The call of a reward function that is in progress."""

    index: int  # of its task
    function: str
    since: float  # monotonic clock


class RewardActor:
    """Holds the functions and runs them in a thread of its own, so that the caller's thread can give up waiting."""

    def __init__(
        self,
        functions: Sequence[str],
        constants: Mapping[str, Any],
        timeout_s: float,
        models: Mapping[str, str | SharedFolder] = NO_MODELS,
        *,
        name: str = "reward",
        reporting: Reporting | None = None,
    ) -> None:
        """Load the functions.

        Args:
            constants: what every function is given by name, whatever the row.
            models: where a reward model is found on other hosts than the driver's, by the name of its function.
            name: of this actor, for what it reports.
        """
        end_with_raylet()
        found = {name: find_local(model, timeout_s=FETCH_TIMEOUT_S) for name, model in models.items()}
        self._functions = {name: load_function(name, model_path=found.get(name)) for name in functions}
        self._constants = constants
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")
        self._running = _Running(index=0, function="", since=0.0)
        self._telemetry = ActorTelemetry(reporting, name)
        self._telemetry.log("up", step=None, functions=functions)

    def pid(self) -> int:
        """Return the process id; an answer means that the functions are loaded."""
        return os.getpid()

    def describe_threads(self) -> ThreadReport:
        """Return where every thread of this process is."""
        return describe_threads()

    def score(
        self, tasks: Sequence[RewardTask], functions: Sequence[str], step: int | None = None
    ) -> list[Scores | RewardFault]:
        """Return one outcome a task, in order, for the first task and as many more as fit.

        No task is begun `timeout_s` after the call, so the caller knows how long a silence may last. After a function
        that hangs there are no more outcomes.

        Args:
            step: of the run, for the log.
        """
        began = time.monotonic()
        with self._telemetry.busy:
            outcomes = self._score_in_time(tasks, functions)
        self._telemetry.log("scored", step=step, groups=len(outcomes), seconds=round(time.monotonic() - began, 4))
        for fault in outcomes:
            if isinstance(fault, RewardFault):
                self._telemetry.log(
                    "reward failed", step=step, level=logging.WARNING, function=fault.function, why=fault.reason
                )
        return outcomes

    def _score_in_time(self, tasks: Sequence[RewardTask], functions: Sequence[str]) -> list[Scores | RewardFault]:
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
        """Wait for the thread. Return None when it is done, or the function that takes longer than `timeout_s`."""
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
        """Call the functions on one task. Return their scores, or the first fault."""
        # The last of these win: no column of the row can take the place of what every function is given.
        arguments = {**task.columns, **self._constants, **{name: getattr(task, name) for name in GIVEN_OF_TASK}}
        scores: dict[str, tuple[float, ...]] = {}
        for name in functions:
            self._running = _Running(index=index, function=name, since=time.monotonic())
            try:
                values = self._functions[name](task.completions, **arguments)
                scores[name] = _check(values, len(task.completions))
            except BaseException as error:  # noqa: BLE001  # a user's function may raise anything, SystemExit too
                return RewardFault(function=name, reason=_describe(error))
        return scores


class _UnusableError(Exception):
    """A function returned something that is not one usable number a completion."""


def _check(values: object, size: int) -> tuple[float, ...]:
    """Return (G,) floats out of what a function returned. Raises _UnusableError for anything else."""
    if not isinstance(values, Collection):
        raise _UnusableError(f"returned {type(values).__name__}, not one number a completion")
    if len(values) != size:
        raise _UnusableError(f"returned {len(values)} values for {size} completions")
    for index, value in enumerate(values):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise _UnusableError(f"returned {reprlib.repr(value)} for completion {index}, not a finite number")
        if abs(float(value)) > LARGEST_REWARD:
            raise _UnusableError(f"returned {value:g} for completion {index}, over {LARGEST_REWARD:g} in size")
    return tuple(float(value) for value in values)


def _describe(error: BaseException) -> str:
    """Return what a function did wrong, with the file and line where it raised."""
    if isinstance(error, _UnusableError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
