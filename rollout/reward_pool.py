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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from common.config.schema import DataConfig, RewardConfig
from common.errors import DeadlineError, RewardError
from common.placement import find_cause, get, schedule_in
from common.shared_folder import SharedFolder
from common.types import CandidateProbabilities, FailedGroup, Group, Prompt, ScoredGroup
from rollout.reward_actor import LARGEST_REWARD, NO_MODELS, RewardActor, RewardFault, RewardTask, Scores
from rollout.rewards.loading import find_functions_with

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

START_TIMEOUT_S = 300.0  # a reward model may have to be fetched first
GRACE_S = 5.0  # an actor that only waits for a core is not dead
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


@dataclass(slots=True, eq=False)
class _Worker:
    handle: Any
    place: PlacementGroup | None
    starting: Any  # resolves when it is up
    call: _Call | None = None


def list_constants(config: RewardConfig, data: DataConfig) -> dict[str, Any]:
    """Return what every function is given by name of the configuration: `GIVEN_OF_CONFIG`."""
    return {
        "mode": data.mode,
        "aliases": data.aliases,
        "taxonomy": data.taxonomy,
        "length_target": config.length_target,
        "repetition_ngram": config.repetition_ngram,
    }


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
    ) -> None:
        """Begin to start the actors.

        Args:
            places: one of each; None or none: wherever Ray finds room.
            models: where other hosts find a reward model, by the name of its function.
        """
        self._config = config
        self._models = dict(models)
        self._constants = list_constants(config, data)
        self._waiting: deque[_Job] = deque()
        self._suspects: deque[tuple[_Job, str]] = deque()
        self.restarts = 0
        self.rescored = 0
        self._workers = [self._spawn(place) for place in places or (None,) * config.workers]

    @cached_property
    def asks_candidate_probabilities(self) -> bool:
        """Whether a function takes the probability of every candidate after each thought."""
        return bool(find_functions_with(self._config.functions, "candidate_probabilities"))

    def score(
        self,
        prompts: Mapping[str, Prompt],
        groups: Iterable[Group],
        candidate_probabilities: Mapping[str, tuple[CandidateProbabilities, ...]] = NO_PROBABILITIES,
    ) -> Iterator[ScoredGroup | FailedGroup]:
        """Score each group against the prompt of its id, while later ones are still being sampled.

        Groups that arrive while every actor is busy travel in one call. So do groups that are all there from the
        beginning, as a sequence. Order is not promised.

        Args:
            candidate_probabilities: (G,) by prompt, where `asks_candidate_probabilities`.

        Raises:
            RewardError: a function failed and `on_error` is stop, or no actor starts.
        """
        try:
            streamed = not isinstance(groups, Sequence)
            for group in groups:
                probabilities = candidate_probabilities.get(group.prompt_id)
                self._waiting.append(_Job(prompts[group.prompt_id], group, probabilities))
                if streamed:
                    yield from self._advance(block=False)
            while self._waiting or self._suspects or any(worker.call for worker in self._workers):
                yield from self._advance(block=True)
        finally:  # an abandoned round must not show up in the next one
            self._waiting.clear()
            self._suspects.clear()
            for worker in self._workers:
                worker.call = None

    def close(self) -> None:
        """Kill every actor."""
        import ray

        for worker in self._workers:
            ray.kill(worker.handle)
        self._workers = []

    def pids(self) -> list[int]:
        """Return the process id of every actor, once all are up. Raises DeadlineError."""
        pids: list[int] = get(
            [worker.starting for worker in self._workers], what="reward actors to start", timeout_s=START_TIMEOUT_S
        )
        return pids

    def _spawn(self, place: PlacementGroup | None) -> _Worker:
        import ray

        settings = {"num_cpus": self._config.cpus_per_worker, "scheduling_strategy": schedule_in(place)}
        actor: Any = ray.remote(**settings)(RewardActor)
        handle = actor.remote(tuple(self._config.functions), self._constants, self._config.timeout_s, self._models)
        return _Worker(handle, place, starting=handle.pid.remote())

    def _replace(self, worker: _Worker) -> None:
        import ray

        ray.kill(worker.handle)
        self._workers[self._workers.index(worker)] = self._spawn(worker.place)
        self.restarts += 1

    def _advance(self, *, block: bool) -> list[ScoredGroup | FailedGroup]:
        """Give idle workers work and return what is done; `block` waits for at least one answer or deadline."""
        self._dispatch()
        return [outcome for worker in self._collect(block) for outcome in self._take_answer(worker)]

    def _dispatch(self) -> None:
        """Send suspects first, alone; then share what is waiting among the workers left.

        Five groups over two workers are three and two.
        """
        idle = [worker for worker in self._workers if worker.call is None]
        while idle and self._suspects:
            job, name = self._suspects.popleft()
            if not job.failed:
                self._send(idle.pop(), [job], [name], alone=True)

        for left, worker in zip(range(len(idle), 0, -1), idle, strict=True):
            share = math.ceil(len(self._waiting) / left)
            if share:
                jobs = [self._waiting.popleft() for _ in range(share)]
                self._send(worker, jobs, list(self._config.functions), alone=False)

    def _send(self, worker: _Worker, jobs: list[_Job], functions: list[str], *, alone: bool) -> None:
        self._await_start(worker)
        ref = worker.handle.score.remote([job.task() for job in jobs], functions)
        # A group may begin one timeout late (RewardActor.score) and take one for each of its functions.
        deadline = time.monotonic() + (1 + len(functions)) * self._config.timeout_s
        worker.call = _Call(jobs, functions, alone, ref, deadline)

    def _await_start(self, worker: _Worker) -> None:
        """Wait until the actor is up. Raises RewardError with the reason when it cannot start."""
        import ray

        try:
            get([worker.starting], what="a reward actor to start", timeout_s=START_TIMEOUT_S)
        except ray.exceptions.RayActorError as error:
            raise RewardError(
                f"the actor for rewards {', '.join(self._config.functions)} could not start",
                got=find_cause(error),
                remedy="see that each function can be imported, and each model loaded, on every node",
            ) from error

    def _collect(self, block: bool) -> list[_Worker]:
        """Return the busy workers that have answered, died or run out of time."""
        import ray

        busy = {worker.call.ref: (worker, worker.call.deadline) for worker in self._workers if worker.call}
        if not busy:
            return []
        nearest = min(deadline for _, deadline in busy.values())
        timeout = max(0.0, nearest - time.monotonic()) if block else 0.0
        done, _ = ray.wait(list(busy), num_returns=1 if block else len(busy), timeout=timeout)
        now = time.monotonic()
        return [worker for ref, (worker, deadline) in busy.items() if ref in done or deadline <= now]

    def _take_answer(self, worker: _Worker) -> Iterator[ScoredGroup | FailedGroup]:
        """Yield the outcomes of a worker's call, and put back into the queue what it did not come to."""
        import ray

        call, worker.call = worker.call, None
        assert call is not None
        try:
            (reply,) = get([call.ref], what="rewards", timeout_s=GRACE_S)
        except (ray.exceptions.RayError, DeadlineError) as error:
            yield from self._handle_loss(worker, call, error)
            return

        # A reply may be shorter than the call: the rest waits again, in its old place.
        if isinstance(reply[-1], RewardFault) and reply[-1].hung:
            self._replace(worker)
            self.rescored += len(call.jobs) - len(reply)
        self._waiting.extendleft(reversed(call.jobs[len(reply) :]))
        for job, outcome in zip(call.jobs[: len(reply)], reply, strict=True):
            yield from self._finish(job, outcome)

    def _handle_loss(self, worker: _Worker, call: _Call, error: Exception) -> Iterator[FailedGroup]:
        """Replace a worker that died or is silent. Blame the function of a call that was alone; take others apart."""
        self._replace(worker)
        if call.alone:
            silent = isinstance(error, DeadlineError)
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
