"""Faults of reward workers at work: stopped and killed, while groups come; each group is scored once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from common.config.schema import DataConfig, RewardConfig
from common.types import Group, ScoredGroup
from rollout.reward_pool import RewardPool
from tests.faults.fleets import Events
from tests.helpers.reward_parts import group, prompt

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("ray_session")]
COUNT = 60
PROMPTS = {f"train/{number}": prompt(number, f"class {number}") for number in range(COUNT)}


def stream(strike: int, victim: int, number: int) -> Iterator[Group]:
    """Yield groups as they are sampled; a signal strikes a worker amid them."""
    for at in range(COUNT):
        if at == strike:
            os.kill(victim, number)
        time.sleep(0.005)
        yield group(at, (f"class {at}", "no"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_struck_at_work_costs_no_group(events: Events, number: int) -> None:
    """One that is stopped is killed at its deadline: two timeouts, one for what had begun before."""
    pool = RewardPool(RewardConfig(workers=2, timeout_s=1.0), DataConfig(), on_event=events)
    try:
        victim = random.choice(pool.pids())
        outcomes = list(pool.score(PROMPTS, stream(random.randrange(COUNT // 2), victim, number)))
        names = [one.prompt.id for one in outcomes if isinstance(one, ScoredGroup)]
        assert sorted(names) == sorted(PROMPTS)
        assert all(one.rewards == (1.0, 0.0) for one in outcomes if isinstance(one, ScoredGroup))
        (lost,) = events.of("reward_worker_lost")
        assert ("died" if number == signal.SIGKILL else "still missing after") in lost["why"], lost
        assert pool.restarts == 1
    finally:
        pool.close()
