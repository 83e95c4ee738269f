"""The groups of a step in ranges of its prompts: they come in any order, and go on range by range.

Four prompts in two ranges, (a b) (c d), whose groups are scored in the order c, a, d, b:

    c, a    nothing goes on: b is missing
    d       nothing goes on: the second range is whole, and waits for the first
    b       a, b go on, and then c, d

What is in a range depends on its prompts alone, never on which group was first (law 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from common.types import FailedGroup, Group, Prompt, ScoredGroup


class PromptRanges:
    """Hands on the scored groups of ranges of prompts, each range once it and those before it are whole."""

    def __init__(self, ranges: Sequence[Sequence[Prompt]]) -> None:
        self._waiting = [[prompt.id for prompt in prompts] for prompts in ranges]
        self._sampled = set[str]()
        self._settled: dict[str, ScoredGroup | FailedGroup] = {}

    def watch(self, groups: Iterable[Group | FailedGroup]) -> Iterator[Group | FailedGroup]:
        """Pass groups on as they were sampled, and note that they were."""
        for group in groups:
            self._sampled.add(group.prompt_id)
            yield group

    def lacks_scores(self) -> bool:
        """Say whether the next range lacks nothing but scores: all its groups were sampled."""
        return bool(self._waiting) and self._sampled.issuperset(self._waiting[0])

    def settle(self, outcome: ScoredGroup | FailedGroup) -> Iterator[list[ScoredGroup]]:
        """Take a group that was scored or has failed. Yield the groups of each range that is whole by now.

        They are in prompt order. Failed ones are left out: a range may even be empty.
        """
        self._settled[outcome.prompt.id if isinstance(outcome, ScoredGroup) else outcome.prompt_id] = outcome
        while self._waiting and self._settled.keys() >= set(self._waiting[0]):
            outcomes = [self._settled.pop(name) for name in self._waiting.pop(0)]
            yield [one for one in outcomes if isinstance(one, ScoredGroup)]
