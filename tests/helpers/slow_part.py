"""`python -m tests.helpers.slow_part`: `learner.main`, one of whose parts is made slow, as ROLLCALL_TEST_SLOW says.

A delay lies where that part does its work: an engine begins with requests, a reward function scores, a rank learns from
a pack, the driver takes scored groups, rows are read.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from learner.guard.line import Line
from learner.guard.parent import run_guarded
from learner.main import main

PART = "ROLLCALL_TEST_SLOW"
DELAY_S = 1.5
SLOW_REWARD = "reward.functions={tests.helpers.slow_part:accuracy: 1.0}"


def accuracy(completions: Sequence[str], *, label: str, **columns: Any) -> list[float]:
    """One of a step's eight calls."""
    time.sleep(DELAY_S / 8)
    return [float(one == label) for one in completions]


def put_off(owner: Any, name: str) -> None:
    """Let a method sleep before it does what it does."""
    method = getattr(owner, name)

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(DELAY_S)
        return method(*args, **kwargs)

    setattr(owner, name, slow)


def slow_engine() -> None:
    import learner.driver.open_run
    from rollout.engine import RolloutEngine
    from rollout.fleet.fleet import RolloutFleet

    class SlowEngine(RolloutEngine):
        def _begin(self, first: Any) -> Any:
            time.sleep(DELAY_S)
            return super()._begin(first)

    vars(learner.driver.open_run)["RolloutFleet"] = partial(RolloutFleet, kind=SlowEngine)


def slow_learner() -> None:
    import learner.trainer.group
    from learner.trainer.learning_step import LearningStep
    from learner.trainer.rank import LearnerRank

    class SlowRank(LearnerRank):
        def _start(self, store: Any) -> None:
            put_off(LearningStep, "forward_backward")
            super()._start(store)

    vars(learner.trainer.group)["LearnerRank"] = SlowRank


def slow_driver() -> None:
    from learner.driver.control.step_batch import StepBatch

    put_off(StepBatch, "add")


def slow_data() -> None:
    from common.data.stream import PromptStream

    put_off(PromptStream, "read")


SLOWED: dict[str, Callable[[], None]] = {
    "engine": slow_engine,
    "learner": slow_learner,
    "driver": slow_driver,
    "data": slow_data,
    "reward": lambda: None,  # by SLOW_REWARD
}


def run_slowed(argv: Sequence[str] | None = None, line: Line | None = None) -> int:
    """Run the command line in the driver, once that is forked."""
    SLOWED[os.environ[PART]]()
    return main(argv, line)


if __name__ == "__main__":
    sys.exit(run_guarded(run_slowed))
