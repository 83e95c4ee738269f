"""First step: every row of a run, read and checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.config.schema import Config
from common.data.content.survey import divide_for_run, survey
from common.data.sources import ExampleSource, load_both, say_notes
from learner.evaluation.measures import HELD_OUT
from learner.evaluation.sets import read_sets


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Rows to train on, and rows to evaluate on."""

    train: ExampleSource
    sets: Mapping[str, ExampleSource]  # by name: the held-out rows first, if there are any, then `evaluation.sets`

    @property
    def own(self) -> list[ExampleSource]:
        """The training rows and the held-out ones: those that `data.path` and its like name."""
        held_out = self.sets.get(HELD_OUT)
        return [self.train, held_out] if held_out else [self.train]


def read_data(config: Config, *, say: Callable[[str], None]) -> RunData:
    """Read the rows of all splits, and say how many there are, and what is doubtful about them.

    Raises DataError naming the rows that cannot be used, alone or beside others.
    """
    train, held_out = load_both(config.data)
    data = RunData(train=train, sets=read_sets(config, held_out))
    say_notes([train, *data.sets.values()], say)
    held = len(held_out) if held_out else 0
    say(f"data: {len(train)} rows to learn from, {held} held out, {len(train.labels)} labels")
    survey(divide_for_run(train, data.sets), config.data, say=say)
    return data


def settle_steps(config: Config, *, rows: int, say: Callable[[str], None]) -> Config:
    """Turn `epochs` into steps: 2 epochs of 1,397 rows in steps of 32 prompts are 88 steps.

    Raises ConfigError when what is said in steps does not fit them.
    """
    if config.epochs is None:
        return config
    settled = config.with_epochs_as_steps(rows)
    say(f"epochs: {config.epochs} of them are {settled.steps} steps of {config.rollout.prompts_per_step} prompts")
    return settled
