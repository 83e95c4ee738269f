"""The reward pool: hands groups to the reward actors and replaces actors that die or hang.

groups --> waiting --one call--> actor --> ScoredGroup | FailedGroup
              ^                    |
              |                    v dies, or is silent past the deadline: it is replaced, and
           suspects <------------- each of its groups is sent again, alone, once for each function.
           A function whose lone group is lost again is to blame. Every other group is scored after all.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from common.config.schema import DataConfig, RewardConfig
from common.errors import DeadlineError, RewardError
from common.placement import find_cause, get, wait
from common.process import ActorView
from common.shared_folder import SharedFolder
from common.telemetry.reporting import Reporting
from common.types import CandidateProbabilities, FailedGroup, Group, Prompt, ScoredGroup
from rollout.reward_actor import LARGEST_REWARD, NO_MODELS, RewardFault, RewardTask, Scores
from rollout.reward_workers import ANSWER_S, RewardWorkers, Worker
from rollout.rewards.loading import find_functions_with

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

LINGER_S = 0.05  # for which a group waits for others, so that they travel in one call ...
SHARE = 32  # ... unless as many wait as a 32nd of those that are to come
NO_PROBABILITIES: Mapping[str, tuple[CandidateProbabilities, ...]] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class _Job:
    """A group on its way through the pool."""

    prompt: Prompt
    group: Group
    candidate_probabilities: tuple[CandidateProbabilities, ...] | None
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)  # function -> (G,), as they come
    failed: bool = False  # dropped already, by one function; others may still answer

    def task(self) -> RewardTask:
        example = self.prompt.example
        return RewardTask(
            prompt_id=example.id,
            problem=example.problem,
            label=example.label,
            columns=example.columns,
            completions=tuple(completion.text for completion in self.group.completions),
            token_ids=tuple(completion.token_ids for completion in self.group.completions),
            candidate_probabilities=self.candidate_probabilities,
        )


@dataclass(slots=True, eq=False)
class _Call:
    """What a worker was sent and has not answered."""

    jobs: Sequence[_Job]
    functions: Sequence[str]
    alone: bool  # one group and one function, which is to blame if the worker is lost
    ref: Any  # ObjectRef of the answer
    deadline: float  # monotonic clock


def list_constants(config: RewardConfig, data: DataConfig) -> dict[str, Any]:
    """Return what every function is given by name of the configuration: `GIVEN_OF_CONFIG`."""
    return {
        "mode": data.mode,
        "aliases": data.aliases,
        "taxonomy": data.taxonomy,
        "length_target": config.length_target,
        "repetition_ngram": config.repetition_ngram,
    }


def tell_nobody(kind: str, **fields: Any) -> None:
    """Take an event and do nothing with it."""


class RewardPool:
    """`config.workers` reward actors as one, each replaced when it dies or hangs.

    `restarts` counts replaced actors and `rescored` groups that were sent again, over the pool's life.
    """

    def __init__(
        self,
        config: RewardConfig,
        data: DataConfig,
        *,
        places: Sequence[PlacementGroup] | None = None,
        models: Mapping[str, str | SharedFolder] = NO_MODELS,
        on_event: Callable[..., None] = tell_nobody,
        reporting: Reporting | None = None,
    ) -> None:
        """Begin to start the actors.

        Args:
            places: one of each; None or none: wherever Ray finds room.
            models: where other hosts find a reward model, by the name of its function.
            on_event: is told of each actor that comes up or is lost, and why.
            reporting: what they need to report what they do; None: they do not.
        """
        self._config = config
        constants = list_constants(config, data)
        self._workers = RewardWorkers(config, constants, models, places=places, on_event=on_event, reporting=reporting)
        self._waiting: deque[_Job] = deque()
        self._suspects: deque[tuple[_Job, str]] = deque()
        self._step: int | None = None  # of the run, that is scored now
        self.rescored = 0
        self._answers = 0  # calls that were answered

    def count_waiting(self) -> int:
        """Return the groups that wait for an actor or are being scored. Any thread may ask."""
        calls = [call for worker in list(self._workers.all) if (call := worker.call)]
        return len(self._waiting) + sum(len(call.jobs) for call in calls)

    @property
    def restarts(self) -> int:
        """Actors that were replaced."""
        return self._workers.restarts

    @cached_property
    def asks_candidate_probabilities(self) -> bool:
        """Whether a function takes the probability of every candidate after each thought."""
        return bool(find_functions_with(self._config.functions, "candidate_probabilities"))

    def score(
        self,
        prompts: Mapping[str, Prompt],
        groups: Iterable[Group | FailedGroup],
        candidate_probabilities: Mapping[str, tuple[CandidateProbabilities, ...]] = NO_PROBABILITIES,
        *,
        more: Callable[[float], bool] = lambda wait_s: False,
        hurry: Callable[[], bool] = lambda: False,
        step: int | None = None,
    ) -> Iterator[ScoredGroup | FailedGroup]:
        """Score each group against the prompt of its id, while later ones are still being sampled.

        Groups that arrive together, or while every actor is busy, travel in one call. So do groups that are all there
        from the beginning, as a sequence. Order is not promised. A group that has failed before is passed on.

        Args:
            candidate_probabilities: (G,) by prompt, where `asks_candidate_probabilities`.
            more: says whether another group comes within so many seconds: then nothing is sent before it was taken.
                A group waits `LINGER_S` for others at most, and not at all in a small step.
            step: of the run, for the log of the actors.
            hurry: says whether somebody waits for the groups so far: then no other is taken before these are scored.

        Raises:
            RewardError: a function failed and `on_error` is stop, or no actor starts.
        """
        self._step = step
        try:
            streamed = not isinstance(groups, Sequence)
            to_come, until = len(prompts), None  # groups; when those that wait are sent, on the monotonic clock
            for group in groups:
                if isinstance(group, FailedGroup):
                    yield group
                else:
                    probabilities = candidate_probabilities.get(group.prompt_id)
                    self._waiting.append(_Job(prompts[group.prompt_id], group, probabilities))
                to_come -= 1
                until = until or time.monotonic() + LINGER_S
                wait_s = until - time.monotonic() if SHARE * len(self._waiting) < to_come else 0.0
                if streamed and (hurry() or not more(max(0.0, wait_s))):
                    until = None
                    yield from self._advance(block=False)
                while self._is_busy() and hurry():
                    yield from self._advance(block=True)
            while self._is_busy():
                yield from self._advance(block=True)
        finally:  # an abandoned round must not show up in the next one
            self._waiting.clear()
            self._suspects.clear()
            for worker in self._workers.all:
                worker.call = None

    def list_actors(self) -> list[ActorView]:
        """Return every worker."""
        return [
            ActorView(name=one.name, actor=one.handle, owes=one.call is not None or not one.up)
            for one in self._workers.all
        ]

    def count_progress(self) -> object:
        """Return what is another as soon as a call was answered or a worker was replaced."""
        return self._answers, self.restarts

    def close(self) -> None:
        """Kill every actor."""
        self._workers.close()

    def pids(self) -> list[int]:
        """Return the process id of every actor, once all are up. Raises DeadlineError."""
        return self._workers.pids()

    def _is_busy(self) -> bool:
        return bool(self._waiting or self._suspects) or any(worker.call for worker in self._workers.all)

    def _advance(self, *, block: bool) -> list[ScoredGroup | FailedGroup]:
        """Give idle workers work and return what is done; `block` waits for at least one answer, start or deadline."""
        self._collect(block=False)
        self._dispatch()
        return [outcome for worker in self._collect(block) for outcome in self._take_answer(worker)]

    def _dispatch(self) -> None:
        """Send suspects first, alone; then share what is waiting among the workers left.

        Five groups over two workers are three and two.
        """
        idle = self._workers.list_idle()
        while idle and self._suspects:
            job, name = self._suspects.popleft()
            if not job.failed:
                self._send(idle.pop(), [job], [name], alone=True)

        for left, worker in zip(range(len(idle), 0, -1), idle, strict=True):
            share = math.ceil(len(self._waiting) / left)
            if share:
                jobs = [self._waiting.popleft() for _ in range(share)]
                self._send(worker, jobs, list(self._config.functions), alone=False)

    def _send(self, worker: Worker, jobs: list[_Job], functions: list[str], *, alone: bool) -> None:
        ref = worker.handle.score.remote([job.task() for job in jobs], functions, self._step)
        # A group may begin one timeout late (RewardActor.score) and take one for each of its functions.
        deadline = time.monotonic() + (1 + len(functions)) * self._config.timeout_s
        worker.call = _Call(jobs, functions, alone, ref, deadline)

    def _collect(self, block: bool) -> list[Worker]:
        """Return the busy workers that have answered, died or run out of time; see to those that start.

        Raises:
            RewardError: no worker comes up.
        """

        starting = {worker.starting: worker for worker in self._workers.list_starting()}
        busy = {worker.call.ref: worker for worker in self._workers.all if worker.call}
        if not starting and not busy:
            return []
        deadlines = [worker.deadline for worker in starting.values()]
        deadlines += [worker.call.deadline for worker in busy.values()]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if block else 0.0
        asked = [*starting, *busy]
        done = wait(asked, count=1 if block else None, timeout_s=timeout)
        now = time.monotonic()
        for ref, worker in starting.items():
            if ref in done or worker.deadline <= now:
                self._workers.finish_start(worker)
        return [worker for ref, worker in busy.items() if ref in done or worker.call.deadline <= now]

    def _take_answer(self, worker: Worker) -> Iterator[ScoredGroup | FailedGroup]:
        """Yield the outcomes of a worker's call, and put back into the queue what it did not come to."""
        import ray

        call, worker.call = worker.call, None
        assert call is not None
        try:
            (reply,) = get([call.ref], what="rewards", timeout_s=ANSWER_S)
        except (ray.exceptions.RayError, DeadlineError) as error:
            yield from self._handle_loss(worker, call, error)
            return

        # A reply may be shorter than the call: the rest waits again, in its old place.
        self._answers += 1
        if isinstance(reply[-1], RewardFault) and reply[-1].hung:
            self._workers.replace(worker, f"reward {reply[-1].function} {reply[-1].reason}")
            self.rescored += len(call.jobs) - len(reply)
        self._waiting.extendleft(reversed(call.jobs[len(reply) :]))
        for job, outcome in zip(call.jobs[: len(reply)], reply, strict=True):
            yield from self._finish(job, outcome)

    def _handle_loss(self, worker: Worker, call: _Call, error: Exception) -> Iterator[FailedGroup]:
        """Replace a worker that died or is silent. Blame the function of a call that was alone; take others apart."""
        silent = isinstance(error, DeadlineError)
        self._workers.replace(worker, str(error.got) if isinstance(error, DeadlineError) else find_cause(error))
        if call.alone:
            hung = f"hung for over {self._config.timeout_s:g} s"
            reason = hung if silent else f"killed its process: {_shorten(error)}"
            yield from self._drop(call.jobs[0], RewardFault(function=call.functions[0], reason=reason))
            return
        self._suspects.extend((job, name) for job in call.jobs for name in call.functions)
        self.rescored += len(call.jobs)

    def _finish(self, job: _Job, outcome: Scores | RewardFault) -> Iterator[ScoredGroup | FailedGroup]:
        """Yield the scored group once all its functions have answered, or the failed one at its first fault."""
        if isinstance(outcome, RewardFault):
            yield from self._drop(job, outcome)
            return
        job.scores.update(outcome)
        if len(job.scores) < len(self._config.functions):
            return  # other functions are still to come, alone

        # (G,) weighted sums, in the order in which the configuration names the functions.
        by_name = {name: job.scores[name] for name in self._config.functions}
        weights = self._config.functions.values()
        rewards = tuple(
            sum(weight * value for weight, value in zip(weights, values, strict=True))
            for values in zip(*by_name.values(), strict=True)
        )
        for total in rewards:
            if not abs(total) <= LARGEST_REWARD:  # NaN is no number either
                reason = f"the weighted sum is {total:g}, over {LARGEST_REWARD:g} in size"
                yield from self._drop(job, RewardFault(function=" + ".join(by_name), reason=reason))
                return
        yield ScoredGroup(prompt=job.prompt, group=job.group, rewards_by_name=by_name, rewards=rewards)

    def _drop(self, job: _Job, fault: RewardFault) -> Iterator[FailedGroup]:
        """Yield the group as failed, once. Raises RewardError where `on_error` is stop."""
        if self._config.on_error == "stop":
            raise RewardError(
                f"reward {fault.function} failed on prompt {job.prompt.id}",
                got=fault.reason,
                remedy="correct the function, or set reward.on_error: drop to go on without such groups",
            )
        if job.failed:  # by another function, on another actor
            return
        job.failed = True
        yield FailedGroup(prompt_id=job.prompt.id, reason=f"reward {fault.function}: {fault.reason}")


def _shorten(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
