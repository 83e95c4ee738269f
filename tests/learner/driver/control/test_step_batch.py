"""Dynamic sampling: which prompts a step asks and which groups it trains on, whatever the engines do (law 5)."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.command import Grace
from common.config.schema import Config
from common.data.feed import PromptFeed
from common.data.stream import PromptStream, StreamState
from common.errors import DataError
from common.types import Completion, FailedGroup, GenerationRequest, Group, Prompt, ScoredGroup, request_seed
from learner.driver.control.lookahead import Lookahead
from learner.driver.control.solve_rates import SolveRates
from learner.driver.control.steering import Steering
from learner.driver.control.step_batch import StepBatch
from learner.driver.ledger import Ledger
from learner.driver.run import Run
from learner.objective.advantages import is_zero_std
from tests.learner.trainer.test_offline_groups import prompt, row, source, writer

P, G = 4, 4


def make_config(lag: int = 0, **signal: Any) -> Config:
    rollout = {"prompts_per_step": P, "group_size": G, "max_lag": lag}
    return Config.model_validate({"seed": 3, "steps": 26, "rollout": rollout, "signal": {"max_prompts": 3.0, **signal}})


class Engines:
    """Answer in an order of their own. What they answer depends on seeds and weights alone, as with real ones.

    A request's seed says how many of its completions are right: often none or all.
    """

    def __init__(self, order: int, refused: frozenset[str] = frozenset()) -> None:
        self._random, self._refused = random.Random(order), refused
        self.asked: list[list[GenerationRequest]] = []
        self.version = 0

    def ask(self, requests: Sequence[GenerationRequest]) -> Any:
        self.asked.append(list(requests))
        return self._answer(requests, self.version)

    def take(self, batch: Iterator[Group | FailedGroup]) -> Iterator[Group | FailedGroup]:
        yield from batch

    def _answer(self, requests: Sequence[GenerationRequest], version: int) -> Iterator[Group | FailedGroup]:
        for one in self._random.sample(requests, len(requests)):
            if one.prompt_id in self._refused:
                yield FailedGroup(prompt_id=one.prompt_id, reason="too long")
                continue
            draw = random.Random(one.seed)
            right = draw.choice([0, 0, one.sampling.n, one.sampling.n, draw.randrange(one.sampling.n)])
            said = ["tiger"] * right + ["cat"] * (one.sampling.n - right)
            yield make_group(one, said, version)


def make_group(request: GenerationRequest, said: Sequence[str], version: int = 0) -> Group:
    completions = [Completion(token_ids=(1,), logprobs=(-1.0,), text=text, finish_reason="stop") for text in said]
    return Group(
        prompt_id=request.prompt_id,
        completions=tuple(completions),
        origin="sampled",
        seed=request.seed,
        engine_id="engine-0",
        weights_version=version,
    )


class Rewards:
    """Score in an order of their own."""

    asks_candidate_probabilities = False

    def __init__(self, order: int) -> None:
        self._random = random.Random(order)

    def score(
        self, prompts: Mapping[str, Prompt], groups: Any, probabilities: Any, *, more: Any, hurry: Any, step: int
    ) -> Iterator[ScoredGroup | FailedGroup]:
        found = list(groups)
        for group in self._random.sample(found, len(found)):
            if isinstance(group, FailedGroup):
                yield group
                continue
            rewards = tuple(float(one.text == "tiger") for one in group.completions)
            scored = prompts[group.prompt_id]
            yield ScoredGroup(prompt=scored, group=group, rewards_by_name={"accuracy": rewards}, rewards=rewards)


def make_run(config: Config, *, rows: int = 40, order: int = 0, refused: frozenset[str] = frozenset()) -> Run:
    """A run on `rows` rows whose engines and rewards finish in the order of a random seed."""
    stream = PromptStream(source(*map(row, range(rows))), seed=config.seed, prompts_per_step=P)
    encoder: Any = SimpleNamespace(encode=prompt)
    events: list[dict[str, Any]] = []

    def note(kind: str, **fields: Any) -> None:
        events.append({"kind": kind, **fields})

    nothing: Any = SimpleNamespace()
    return Run(
        inputs=cast("Any", SimpleNamespace(config=config)),
        tracker=cast("Any", SimpleNamespace(event=note, events=events)),
        ledger=Ledger(on_event=note, max_drop_share=config.reward.max_drop_share),
        fleet=cast("Any", Engines(order, refused)),
        rewards=cast("Any", Rewards(order)),
        learner=nothing,
        weight_sync=nothing,
        probe=nothing,
        feed=PromptFeed(stream, encoder, ahead=P, timeout_s=30.0),
        offline=writer(config.method, rollout=config.rollout.model_dump(), exact=config.exact.model_dump()),
        vision_cache=None,
        checkpoints=nothing,
        profiler=cast("Any", SimpleNamespace(begin_step=lambda step: None)),
        grace=Grace(9.0),
        steering=Steering(config),
        solve_rates=SolveRates(config),
        lookahead=Lookahead(steps=config.steps, max_lag=config.rollout.max_lag),
    )


def take_step(run: Run) -> StepBatch:
    """What `train` does before it learns, and the books after it."""
    batch = run.begin_batch()
    while prompts := run.next_prompts(batch):
        for scored in run.score(prompts, run.groups(prompts)):
            batch.add(scored)
            run.learn_ahead(run.version, batch)
    run.ledger.trained += len(batch.groups)
    run.version += 1
    run.fleet.version = run.version  # type: ignore[attr-defined]
    return batch


def describe(batch: StepBatch) -> Any:
    """All that a step asked and trains on, its tokens' seeds included."""
    return batch.drawn, [
        (one.prompt.id, one.group.seed, one.group.weights_version, one.rewards) for one in batch.groups
    ]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_group_size": 9},
    {"skip_solved": 1, "curriculum": "learnability"},
    {"max_group_size": 9, "skip_solved": 2, "skip_epochs": 3, "curriculum": "learnability"},
    {"max_prompts": 1.0, "lag": 1},
    {"max_prompts": 1.0, "lag": 3, "max_group_size": 9, "skip_solved": 2, "curriculum": "learnability"},
]


@pytest.mark.parametrize("signal", SETTINGS, ids=str)
def test_whichever_engine_is_first_the_same_prompts_are_asked_and_trained(signal: dict[str, Any]) -> None:
    runs = [make_run(make_config(**signal), order=order) for order in range(4)]
    for _ in range(25):
        steps = [describe(take_step(run)) for run in runs]
        assert steps.count(steps[0]) == len(steps)
    states = [(run.feed.state(), run.ledger.counts(), run.solve_rates.state()) for run in runs]
    assert states.count(states[0]) == len(states)


@pytest.mark.parametrize("signal", SETTINGS, ids=str)
@pytest.mark.parametrize("killed_at", [1, 6, 13])
def test_a_resumed_run_asks_what_the_one_left_alone_asks(signal: dict[str, Any], killed_at: int) -> None:
    """The step that was under way is lost, with what it had drawn and seen."""
    whole, killed = (make_run(make_config(**signal), rows=17, order=order) for order in (0, 1))
    expected = [describe(take_step(whole)) for _ in range(16)]
    for _ in range(killed_at):
        take_step(killed)
    ahead = killed.lookahead.state(list(killed.lookahead.asked), killed.fleet.take)
    saved = json.dumps([asdict(killed.feed.state()), killed.ledger.counts(), killed.solve_rates.state(), ahead])
    batch = killed.begin_batch()
    (scored,) = killed.score(prompts := killed.next_prompts(batch), killed.groups(prompts))
    batch.add(scored)

    resumed = make_run(make_config(**signal), rows=17, order=2)
    stream, counts, rates, ahead = json.loads(saved)
    resumed.feed.restore(StreamState(**stream))
    resumed.ledger.restore(counts)
    resumed.solve_rates.restore(rates)
    resumed.lookahead.restore(ahead, resumed.feed.recall)
    resumed.version = resumed.fleet.version = killed_at  # type: ignore[attr-defined]
    assert [describe(take_step(resumed)) for _ in range(16 - killed_at)] == expected[killed_at:]
    assert resumed.ledger.counts() == whole.ledger.counts()
    assert resumed.solve_rates.state() == whole.solve_rates.state()


@pytest.mark.parametrize("lag", [0, 1, 2, 4])
def test_each_step_is_sampled_with_weights_of_one_age_and_no_prompt_is_asked_beyond_the_last(lag: int) -> None:
    config = make_config(lag, max_prompts=1.0)
    run = make_run(config)
    for step in range(config.steps):
        found = {one.group.weights_version for one in take_step(run).groups}
        assert found == {max(0, step - lag)}
        assert run.ledger.pending == P * min(lag, config.steps - step - 1)
    assert run.ledger.counts() == {"dispatched": 26 * P, "trained": 26 * P, "dropped": 0, "failed": 0, "filtered": 0}


def test_a_step_that_is_skipped_leaves_the_engines_as_far_ahead() -> None:
    run = make_run(make_config(2, max_prompts=1.0))
    seen = set()
    for _ in range(10):
        seen |= {one.group.seed for one in take_step(run).groups}
        run.version -= 1  # as a skipped step does
        assert len(run.lookahead.asked) == 2
    assert len(seen) == 10 * P, "each batch is asked with seeds of its own"


def test_a_step_asks_as_many_prompts_as_groups_are_missing_and_trains_on_those_that_teach() -> None:
    """Laws 5 and 6, step by step, against the rule said naively."""
    config = make_config()
    run = make_run(config)
    engines: Any = run.fleet
    replaced = 0
    for step in range(30):
        before, counts = len(engines.asked), run.ledger.counts()
        batch = take_step(run)
        teaching, left = 0, 3 * P
        for number, requests in enumerate(engines.asked[before:]):
            assert len(requests) == (min(P - teaching, left) if number else P)
            assert all(one.seed == request_seed(config.seed, step, one.prompt_id) for one in requests)
            left -= len(requests)
            ids = {one.prompt_id for one in requests}
            teaching += sum(not is_zero_std(one) for one in batch.scored if one.prompt.id in ids)
        assert teaching == P or left == 0
        assert len(batch.groups) == P
        assert sum(not is_zero_std(one) for one in batch.groups) == teaching
        asked = list(batch.drawn)
        assert [one.prompt.id for one in batch.scored] == asked
        trained = [asked.index(one.prompt.id) for one in batch.groups]
        assert trained == sorted(trained), "prompt order decides the last bits of a gradient"
        assert all(is_zero_std(one) for one in batch.left_out)
        assert len(set(asked)) == len(asked)
        added = {name: count - counts[name] for name, count in run.ledger.counts().items()}
        dropped = len(asked) - P
        assert added == {"dispatched": len(asked), "trained": P, "dropped": dropped, "failed": 0, "filtered": dropped}
        assert run.ledger.pending == 0
        replaced += dropped
    events = [one for one in cast("Any", run.tracker).events if one["kind"] == "filtered"]
    assert replaced == sum(len(one["prompts"]) for one in events) > 30, "far more than reward.max_drop_share"
    assert run.feed.epochs == pytest.approx((30 * P + replaced) / 40)


def test_without_the_option_a_step_asks_once_and_trains_on_all() -> None:
    run = make_run(make_config(max_prompts=1.0))
    for _ in range(10):
        batch = take_step(run)
        assert batch.rounds == 1
        assert batch.groups == batch.scored and len(batch.groups) == P
    assert run.ledger.counts() == {"dispatched": 40, "trained": 40, "dropped": 0, "failed": 0, "filtered": 0}


@pytest.mark.parametrize("rows", [P, P + 1, 7])
def test_a_small_set_is_asked_once_a_step_at_most(rows: int) -> None:
    run = make_run(make_config(max_prompts=100.0), rows=rows)
    seen = Counter[str]()
    for _ in range(20):
        batch = take_step(run)
        assert P <= len(batch.drawn) <= rows
        assert len(batch.groups) == P
        seen.update(list(batch.drawn))
    assert max(seen.values()) <= 20


class AllRight(Engines):
    """Nothing carries signal."""

    def _answer(self, requests: Sequence[GenerationRequest], version: int) -> Iterator[Group | FailedGroup]:
        yield from (make_group(one, ["tiger"] * one.sampling.n) for one in requests)


@pytest.mark.parametrize("signal", SETTINGS[:4], ids=str)
def test_a_step_without_any_signal_trains_on_the_first_groups(signal: dict[str, Any]) -> None:
    """No crash, no endless search, also where every row is solved and would be passed over."""
    run = make_run(make_config(**signal))
    run.fleet = cast("Any", AllRight(0))
    for _ in range(30):
        batch = take_step(run)
        assert len(batch.drawn) == 3 * P
        assert [one.prompt.id for one in batch.groups] == list(batch.drawn)[:P]
    assert run.ledger.counts()["filtered"] == 30 * 2 * P


def test_a_bound_in_seconds_ends_the_rounds_and_is_an_event() -> None:
    run = make_run(make_config(max_seconds=1e-9))
    run.fleet = cast("Any", AllRight(0))
    batch = take_step(run)
    assert batch.rounds == 1 and len(batch.groups) == P
    (event,) = [one for one in cast("Any", run.tracker).events if one["kind"] == "refill_stopped"]
    assert (event["step"], event["missing"]) == (0, P)


def lenient(share: float) -> Config:
    return Config.model_validate(make_config().model_dump(exclude={"reward"}) | {"reward": {"max_drop_share": share}})


def test_refused_prompts_are_replaced_too_and_count_as_failed() -> None:
    refused = frozenset(f"train/{number}" for number in range(0, 40, 9))
    run = make_run(
        make_config().model_copy(update={"reward": Config().reward.model_copy(update={"max_drop_share": 0.9})}),
        refused=refused,
    )
    for _ in range(10):
        batch = take_step(run)
        assert len(batch.groups) == P
        assert not refused & {one.prompt.id for one in batch.groups}
    counts = run.ledger.counts()
    assert counts["failed"] > 0
    assert counts["dropped"] == counts["failed"] + counts["filtered"]
    assert run.ledger.pending == 0


def test_a_step_of_which_nothing_comes_back_is_an_error() -> None:
    everything = frozenset(f"train/{number}" for number in range(40))
    with pytest.raises(DataError, match=r"every group of a step was dropped\D*12 prompts"):
        take_step(make_run(lenient(1.0), refused=everything))


def test_beside_given_answers_only_sampled_groups_are_replaced() -> None:
    """Half of each step is sampled. Given groups always teach: they have no zero-std."""
    raw = make_config().model_dump() | {"method": "exact", "exact": {"sampled_share": 0.5}}
    run = make_run(Config.model_validate(raw))
    replaced = 0
    for _ in range(20):
        batch = take_step(run)
        origins = Counter(one.group.origin for one in batch.groups)
        assert origins == {"given": P // 2, "sampled": P // 2}
        assert all(one.group.origin == "sampled" for one in batch.left_out)
        replaced += len(batch.left_out)
    assert replaced > 20
