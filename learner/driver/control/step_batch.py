"""The groups of one step while prompts are asked for it, round after round: dynamic sampling (DAPO).

A round asks exactly as many prompts as groups are missing, so nothing that carries signal is ever thrown away. With P =
4, of which 3 groups carry signal in the first round and none in the second:

    round 1    asks 4    a B c d      B has equal rewards
    round 2    asks 1    E            E too
    round 3    asks 1    f            the step trains on a, c, d, f; B and E are dropped

If rounds had ended before the third, it would have trained on a, B, c, d, and dropped E.

Source: Yu et al. 2025, arXiv:2503.14476, section 3.2.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import chain

from common.config.schema import Config
from common.types import Prompt, ScoredGroup
from learner.objective.advantages import is_zero_std


class StepBatch:
    """The prompts that one step has asked, and their scored groups.

    Which prompts are asked next depends on rewards alone, never on which engine was first (law 5). A bound in seconds
    breaks that, and is an event when it acts.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._began = time.monotonic()
        self.drawn: dict[str, int] = {}  # prompt id -> epoch it was drawn in, in the order of drawing
        self.ranges: list[list[ScoredGroup]] = []  # all that came back, in that order; see `Config.ranges`
        self.rounds = 0

    def count_missing(self) -> int:
        """Return how many prompts the next round asks: P in the first, then one for each group without signal."""
        if not self.rounds:
            return self._config.rollout.prompts_per_step
        left = self._config.most_prompts - len(self.drawn)
        if left <= 0:
            return 0
        found = sum(one.group.origin == "sampled" and self._teaches(one) for one in self.scored)
        return min(self._config.sampled_prompts - found, left)

    def is_late(self) -> bool:
        """Whether `signal.max_seconds` have passed since the step began."""
        most = self._config.signal.max_seconds
        return most is not None and self.rounds > 0 and time.monotonic() - self._began >= most

    def ask(self, drawn: Sequence[tuple[Prompt, int]]) -> None:
        """Note the prompts of a round, and the epoch that each was drawn in."""
        self.rounds += 1
        self.drawn |= {prompt.id: epoch for prompt, epoch in drawn}

    def add(self, scored: Iterable[ScoredGroup]) -> None:
        """Take the groups of a round, or of its next range, in prompt order."""
        self.ranges.append(list(scored))

    @property
    def scored(self) -> list[ScoredGroup]:
        """All groups that came back, in prompt order."""
        return list(chain.from_iterable(self.ranges))

    @property
    def groups(self) -> list[ScoredGroup]:
        """The groups to train on, in prompt order: those that teach, filled up to P with the first that do not."""
        chosen = self._choose()
        return [one for one in self.scored if one.prompt.id in chosen]

    @property
    def left_out(self) -> list[ScoredGroup]:
        """The groups that are dropped because others teach more, in prompt order."""
        chosen = self._choose()
        return [one for one in self.scored if one.prompt.id not in chosen]

    def _choose(self) -> set[str]:
        """Return the prompts whose groups are trained on."""
        if len(self.scored) <= self._config.rollout.prompts_per_step:
            return {one.prompt.id for one in self.scored}
        first = sorted(self.scored, key=self._teaches, reverse=True)  # keeps the order among equals
        return {one.prompt.id for one in first[: self._config.rollout.prompts_per_step]}

    def _teaches(self, scored: ScoredGroup) -> bool:
        return scored.group.origin == "given" or not is_zero_std(scored, self._config.reward)
