"""The figures of a run as its driver knows them, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from common.config.schema import Config
from common.telemetry.reporting import Figure, Reporter, Reporting
from learner.tracking.records import StepRecord
from rollout.fleet.fleet import RolloutFleet
from rollout.reward_pool import RewardPool

LOSSES = {"engine_lost": "engine", "rank_lost": "rank", "reward_worker_lost": "reward"}


class RunMetrics:
    """Follows a tracker, and looks at fleet and rewards whenever figures are read, by the reporter's thread."""

    def __init__(
        self,
        config: Config,
        *,
        fleet: RolloutFleet,
        rewards: RewardPool,
        count_answered: Callable[[], int],
        gap_limits: Mapping[str, float],
        steps: int,
        counts: Mapping[str, int],
    ) -> None:
        """Begin at a run that is open and has yet to take its next step.

        Args:
            count_answered: returns the groups that engines have answered and the driver has not taken.
            gap_limits: of the largest and the mean log-prob gap, `max` and `mean`.
            steps: that the run has done.
            counts: of its groups, see `Ledger.counts`.
        """
        self._fleet, self._rewards, self._count_answered = fleet, rewards, count_answered
        self._lag_limit, self._gap_limits = config.rollout.max_lag, gap_limits
        self._open, self._steps = 1, steps
        self._last_step = self._last_checkpoint = time.time()
        self._checkpoint_failures = 0
        self._losses = dict.fromkeys(LOSSES.values(), 0)
        self._settled = counts["trained"] + counts["dropped"]  # groups, before the step that is under way
        self._unwanted = counts["dropped"] - counts["filtered"]
        self._of_step: tuple[Figure, ...] = ()
        self._reporter: Reporter | None = None

    def begin(self, reporting: Reporting) -> None:
        """Report from now on, where somebody reads it."""
        self._reporter = reporting.begin(self.read)

    def close(self) -> None:
        """Say that the run has ended by itself, and report no more."""
        self._open = 0
        if self._reporter:
            self._reporter.close()

    def step(self, record: StepRecord) -> None:
        """Take note of a step that has just ended."""
        self._steps, self._last_step = record.step + 1, time.time()
        settled, unwanted = (
            record.groups_trained + record.groups_dropped,
            record.groups_dropped - record.groups_filtered,
        )
        dropped = max(0, unwanted - self._unwanted) / max(
            1, settled - self._settled
        )  # less than before: after a rewind
        self._settled, self._unwanted = settled, unwanted
        pending = record.groups_dispatched - settled
        groups = {"asked": record.groups_dispatched, "trained": record.groups_trained}
        groups |= {"dropped": record.groups_dropped, "pending": pending}
        self._of_step = (
            *(Figure("phase_seconds", value, {"phase": name}) for name, value in record.seconds.items()),
            Figure("tokens_per_second", record.completions_per_second * record.completion_length),
            Figure("reward_mean", record.reward),
            Figure("zero_std_share", record.zero_std_share),
            Figure("entropy", record.entropy),
            Figure("kl", record.kl),
            # The limits hold for tokens of the newest weights alone, lag 0.
            *(Figure("logprob_gap", record.lag.get(f"0/gap_{of}", 0.0), {"of": of}) for of in ("max", "mean")),
            *(Figure("groups", count, {"what": what}) for what, count in groups.items()),
            Figure("dropped_share", dropped),
        )

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take note of losses and checkpoints."""
        if kind in LOSSES:
            self._losses[LOSSES[kind]] += 1
        elif kind == "checkpoint":
            self._last_checkpoint = time.time()
        elif kind == "checkpoint_failed":
            self._checkpoint_failures += 1

    def read(self) -> Iterable[Figure]:
        """Yield every figure of the run."""
        yield Figure("run_open", self._open)
        yield Figure("steps", self._steps)
        yield Figure("last_step_timestamp_seconds", self._last_step)
        yield Figure("checkpoint_timestamp_seconds", self._last_checkpoint)
        yield Figure("checkpoint_failures", self._checkpoint_failures)
        yield from (Figure("losses", count, {"of": of}) for of, count in self._losses.items())
        yield from (Figure("logprob_gap_limit", limit, {"of": of}) for of, limit in self._gap_limits.items())
        yield Figure("weights_lag_limit", self._lag_limit)
        yield from self._of_step
        if self._open:
            yield from self._read_fleet()

    def _read_fleet(self) -> Iterator[Figure]:
        state = self._fleet.describe()
        for name in ("wanted", "serving", "starting", "waiting", "draining"):
            yield Figure("engines", getattr(state, name), {"state": name})
        load = self._fleet.measure_load()
        waiting = {"engine": load.unsent, "sampling": load.sampling, "driver": self._count_answered()}
        for of, groups in (waiting | {"reward": self._rewards.count_waiting()}).items():
            yield Figure("queue", groups, {"of": of})
        if load.published is not None:
            yield Figure("weights_version", load.published, {"actor": "learner"})
            for engine, version in load.held.items():
                yield Figure("weights_version", version, {"actor": engine})
                yield Figure("weights_lag", load.published - version, {"actor": engine})
