"""The reward actors of a pool: started, watched while they start, and replaced when they die or hang.

None is waited for here: the pool waits for starts and answers alike, so that one lost worker holds no other up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.config.schema import RewardConfig
from common.errors import DeadlineError, RewardError
from common.placement import find_cause, get, schedule_in
from common.process import CONTROL
from common.shared_folder import SharedFolder
from common.telemetry.reporting import Reporting
from rollout.reward_actor import RewardActor

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

START_TIMEOUT_S = 300.0  # a reward model may have to be fetched first
ANSWER_S = 5.0  # an actor that only waits for a core is not dead
MOST_FAILED_STARTS = 3  # in a row, over all workers


@dataclass(slots=True, eq=False)
class Worker:
    """A reward actor, and what it does."""

    name: str  # "reward-0"
    handle: Any
    place: PlacementGroup | None
    starting: Any  # ObjectRef of its process id; resolves when it is up
    deadline: float  # of its start, on the monotonic clock
    up: bool = False
    call: Any = None  # what it was sent and has not answered


class RewardWorkers:
    """`config.workers` reward actors.

    `restarts` counts those that were replaced.
    """

    def __init__(
        self,
        config: RewardConfig,
        constants: Mapping[str, Any],
        models: Mapping[str, str | SharedFolder],
        *,
        places: Sequence[PlacementGroup] | None,
        on_event: Callable[..., None],
        reporting: Reporting | None,
    ) -> None:
        """Begin to start them; see `RewardPool`."""
        self._reporting = reporting
        self._config, self._constants, self._models, self._event = config, dict(constants), dict(models), on_event
        self._spawned = self._failed_starts = self.restarts = 0
        self.all = [self._spawn(place) for place in places or (None,) * config.workers]

    def list_idle(self) -> list[Worker]:
        """Return those that are up and have nothing to do."""
        return [worker for worker in self.all if worker.up and worker.call is None]

    def list_starting(self) -> list[Worker]:
        """Return those that are not up yet."""
        return [worker for worker in self.all if not worker.up]

    def replace(self, worker: Worker, why: str) -> None:
        """Kill what is left of a worker and begin to start another in its place."""
        import ray

        self._event("reward_worker_lost", worker=worker.name, why=why)
        ray.kill(worker.handle)
        self.restarts += 1
        self.all[self.all.index(worker)] = self._spawn(worker.place)

    def finish_start(self, worker: Worker) -> None:
        """Count a worker as up whose start has resolved, or replace it where it died or ran out of time.

        Raises:
            RewardError: it raised an error of its own, or too many in a row did not come up.
        """
        import ray

        late = worker.deadline <= time.monotonic()
        try:
            (pid,) = get([worker.starting], what="a reward worker to start", timeout_s=0.0 if late else ANSWER_S)
        except ray.exceptions.RayActorError as error:
            why = find_cause(error)
            if "creation task" in str(error):  # what it raised itself, another would raise too
                raise self._make_error(why) from error
        except DeadlineError as error:
            why = f"was not up after {START_TIMEOUT_S:g} s" if late else str(error.got)
        else:
            worker.up, self._failed_starts = True, 0
            self._event("reward_worker_up", worker=worker.name, pid=pid)
            return

        self._failed_starts += 1
        if self._failed_starts >= MOST_FAILED_STARTS:
            raise self._make_error(f"{self._failed_starts} workers in a row did not come up, the last: {why}")
        self.replace(worker, f"while it started: {why}")

    def pids(self) -> list[int]:
        """Return the process id of every actor, once all are up. Raises DeadlineError."""
        starting = [worker.starting for worker in self.all]
        pids: list[int] = get(starting, what="reward workers to start", timeout_s=START_TIMEOUT_S)
        return pids

    def close(self) -> None:
        """Kill every actor."""
        import ray

        for worker in self.all:
            ray.kill(worker.handle)
        self.all = []

    def _spawn(self, place: PlacementGroup | None) -> Worker:
        import ray

        name = f"reward-{self._spawned}"
        self._spawned += 1
        settings: dict[str, Any] = {
            "num_cpus": self._config.cpus_per_worker,
            "concurrency_groups": {CONTROL: 1},
            "scheduling_strategy": schedule_in(place),
        }
        actor: Any = ray.remote(**settings)(RewardActor)
        handle = actor.remote(
            tuple(self._config.functions),
            self._constants,
            self._config.timeout_s,
            self._models,
            name=name,
            reporting=self._reporting,
        )
        return Worker(name, handle, place, handle.pid.remote(), time.monotonic() + START_TIMEOUT_S)

    def _make_error(self, why: str) -> RewardError:
        return RewardError(
            f"the worker for rewards {', '.join(self._config.functions)} could not start",
            got=why,
            remedy="see that each function can be imported, and each model loaded, on every node; Ray's logs say who "
            "ended a worker that was killed",
        )
