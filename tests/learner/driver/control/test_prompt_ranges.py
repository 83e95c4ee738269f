"""Groups come in any order and go on range by range (law 5): every order of a few, and random ones of many."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any, cast

import pytest

from common.config.schema import Config
from common.errors import DataError
from common.types import FailedGroup, Group, Prompt, ScoredGroup
from learner.driver.control.prompt_ranges import PromptRanges
from learner.driver.run import Run
from learner.trainer.microbatches import divide
from tests.learner.driver.control.test_step_batch import Engines, make_group, make_run
from tests.learner.trainer.test_offline_groups import prompt, row

Outcome = ScoredGroup | FailedGroup


def make_outcomes(prompts: Sequence[Prompt], failed: frozenset[int]) -> list[Outcome]:
    made: list[Outcome] = []
    for number, one in enumerate(prompts):
        request: Any = type("Request", (), {"prompt_id": one.id, "seed": 1})
        group = make_group(request, ["cat", "tiger"])
        scored = ScoredGroup(prompt=one, group=group, rewards_by_name={}, rewards=(0.0, 1.0))
        made.append(FailedGroup(prompt_id=one.id, reason="no") if number in failed else scored)
    return made


def hand_over(prompts: Sequence[Prompt], parts: int, outcomes: Sequence[Outcome], order: Sequence[int]) -> None:
    """Settle the outcomes in an order; each time exactly what an oracle says has gone on, and as it says."""
    ranges = PromptRanges(divide(prompts, parts))
    numbers = divide(range(len(prompts)), parts)
    went: list[list[ScoredGroup]] = []
    for done, number in enumerate(order, 1):
        went += ranges.settle(outcomes[number])
        settled = set(order[:done])
        whole = [set(part) <= settled for part in numbers]
        prefix = whole.index(False) if False in whole else len(whole)
        own = [[outcomes[at] for at in part] for part in numbers[:prefix]]
        assert went == [[one for one in part if isinstance(one, ScoredGroup)] for part in own]


@pytest.mark.parametrize(("count", "parts"), [(4, 2), (5, 3), (6, 6), (6, 1)])
def test_a_range_goes_on_once_it_and_all_before_it_are_whole(count: int, parts: int) -> None:
    prompts = [prompt(row(number)) for number in range(count)]
    for failed in (frozenset[int](), frozenset({0}), frozenset({count - 1}), frozenset(range(count))):
        outcomes = make_outcomes(prompts, failed)
        for order in permutations(range(count)):
            hand_over(prompts, parts, outcomes, order)


@pytest.mark.parametrize("seed", range(20))
def test_so_it_is_for_many(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randrange(2, 40)
    prompts = [prompt(row(number)) for number in range(count)]
    failed = frozenset(draw.sample(range(count), draw.randrange(count)))
    hand_over(prompts, draw.randrange(1, count + 1), make_outcomes(prompts, failed), draw.sample(range(count), count))


def test_only_a_range_that_is_sampled_whole_waits_for_its_scores() -> None:
    prompts = [prompt(row(number)) for number in range(4)]
    outcomes = make_outcomes(prompts, frozenset())
    ranges = PromptRanges(divide(prompts, 2))
    groups = [cast("ScoredGroup", one).group for one in outcomes]
    found = []
    for number, _ in enumerate(ranges.watch([groups[2], groups[0], groups[3], groups[1]])):
        found.append(ranges.lacks_scores())
        if number == 2:
            assert list(ranges.settle(outcomes[2])) == list(ranges.settle(outcomes[3])) == []
    assert found == [False, False, False, True]
    assert [*ranges.settle(outcomes[0]), *ranges.settle(outcomes[1])] == [outcomes[:2], outcomes[2:]]
    assert not ranges.lacks_scores()


class Ranks:
    """Note what the learner is given, and what was sampled by then."""

    def __init__(self, engines: Any) -> None:
        self.calls: list[Any] = []
        self._engines = engines

    def begin_step(self, *, at: int, coefficients: Any) -> None:
        self.calls.append(("begin", at))

    def learn_range(self, scored: Sequence[ScoredGroup], *, last: bool) -> None:
        self.calls.append(([one.prompt.id for one in scored], last, self._engines.yielded))


class Counted(Engines):
    """Count the groups that were sampled, and score nothing late."""

    yielded = 0

    def take(self, batch: Iterator[Group | FailedGroup]) -> Iterator[Group | FailedGroup]:
        for one in batch:
            self.yielded += 1
            yield one


class AtOnce:
    """Score every group as it comes."""

    asks_candidate_probabilities = False

    def score(
        self, prompts: Any, groups: Any, probabilities: Any, *, more: Any, hurry: Any, step: int
    ) -> Iterator[Outcome]:
        for group in groups:
            yield (
                group
                if isinstance(group, FailedGroup)
                else ScoredGroup(
                    prompt=prompts[group.prompt_id],
                    group=group,
                    rewards_by_name={"accuracy": (1.0,) * len(group.completions)},
                    rewards=(1.0,) * len(group.completions),
                )
            )


def take_steps(order: int, refused: frozenset[str] = frozenset()) -> tuple[Run, list[Any]]:
    raw: dict[str, Any] = {"steps": 9, "rollout": {"prompts_per_step": 8, "group_size": 2}, "learner": {"ranges": 3}}
    config = Config.model_validate(raw | {"reward": {"max_drop_share": 1.0}})
    run = make_run(config, rows=40, order=order, refused=refused)
    engines = Counted(order, refused)
    run.fleet, run.rewards = cast("Any", engines), cast("Any", AtOnce())
    ranks = Ranks(engines)
    run.learner = cast("Any", ranks)
    for _ in range(4):
        batch = run.begin_batch()
        while prompts := run.next_prompts(batch):
            for scored in run.score(prompts, run.groups(prompts)):
                batch.add(scored)
                run.learn_ahead(run.version, batch)
        run.ledger.trained += len(batch.groups)
        run.version += 1
        engines.version = run.version
    return run, ranks.calls


@pytest.mark.parametrize("refused", [frozenset[str](), frozenset(f"train/{number}" for number in range(0, 40, 3))])
def test_the_learner_gets_each_range_of_a_step_in_order_whichever_engine_is_first(refused: frozenset[str]) -> None:
    """Laws 5 and 6. Ranges go out while later ones are sampled."""
    runs = [take_steps(order, refused) for order in range(5)]
    given = [[call[:2] for call in calls] for _, calls in runs]
    assert given.count(given[0]) == len(given)
    assert [call for call in given[0] if call[0] == "begin"] == [("begin", step) for step in range(4)]
    assert [last for name, last in given[0] if name != "begin"] == [False, False, True] * 4
    early = [sampled for _, calls in runs for call in calls if call[0] != "begin" for sampled in call[2:]]
    assert any(sampled % 8 for sampled in early), "none went out before all were sampled"
    for run, _ in runs:
        assert run.ledger.pending == 0
        assert (run.ledger.dropped > 0) == bool(refused)


def test_a_step_of_which_nothing_comes_back_is_an_error_with_ranges_too() -> None:
    with pytest.raises(DataError, match="every group of a step was dropped"):
        take_steps(0, frozenset(f"train/{number}" for number in range(40)))
