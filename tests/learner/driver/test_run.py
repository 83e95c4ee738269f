"""A run's own decisions, without its parts: whose answers are sampled, and when engines need the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.command import Grace, Terminated
from common.config.schema import Config
from common.data.stream import StreamState
from common.errors import LearnerError
from common.types import FailedGroup, GenerationRequest, Group, request_seed
from learner.driver.control.lookahead import Lookahead
from learner.driver.control.solve_rates import SolveRates
from learner.driver.control.steering import Steering
from learner.driver.control.step_batch import StepBatch
from learner.driver.ledger import Ledger
from learner.driver.run import Run
from learner.storage.checkpoint import DriverState
from learner.tracking.books import StepBooks
from learner.tracking.records import History
from tests.helpers import tiny
from tests.learner.trainer.test_offline_groups import prompt, row, writer


class Engines:
    """Sample every prompt but the last."""

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []

    def ask(self, requests: Sequence[GenerationRequest]) -> Any:
        self.asked += requests
        return self._answer(requests)

    def take_loads(self) -> list[Any]:
        return []

    def take(self, batch: Iterator[Group | FailedGroup]) -> Iterator[Group | FailedGroup]:
        yield from batch

    def _answer(self, requests: Sequence[GenerationRequest]) -> Iterator[Group | FailedGroup]:
        for number, one in enumerate(requests):
            if number == len(requests) - 1:
                yield FailedGroup(prompt_id=one.prompt_id, reason="too long")
            else:
                yield tiny.group(number, text=4, pictures=[], lengths=[1, 1]).group


class PassOn:
    """Score nothing, and pass failed groups on as the pool does."""

    asks_candidate_probabilities = False

    def score(
        self, prompts: Any, groups: Any, probabilities: Any, *, more: Any, hurry: Any, step: int
    ) -> Iterator[FailedGroup]:
        yield from groups


class Recorded:
    """What was published and probed, in order."""

    def __init__(self) -> None:
        self.versions: list[int] = []

    def publish(self, version: int) -> None:
        self.versions.append(version)

    def __call__(self, version: int, prompts: Any) -> None:
        assert version == self.versions[-1]


def run(config: Config, *, evaluated: Sequence[int] = (), held_out: bool = True) -> tuple[Run, Engines, Recorded]:
    nothing: Any = SimpleNamespace()
    engines, recorded = Engines(), Recorded()
    made = Run(
        inputs=cast("Any", SimpleNamespace(config=config, sets=[1] if held_out else [])),
        tracker=cast("Any", SimpleNamespace(history=SimpleNamespace(evaluations={step: {} for step in evaluated}))),
        ledger=Ledger(on_event=lambda kind, **fields: None, max_drop_share=1.0),
        fleet=cast("Any", engines),
        rewards=nothing,
        learner=cast("Any", SimpleNamespace(keep=lambda: None)),
        weight_sync=cast("Any", recorded),
        probe=cast("Any", recorded),
        feed=nothing,
        offline=writer("exact"),
        vision_cache=None,
        checkpoints=nothing,
        profiler=nothing,
        grace=Grace(9.0),
        steering=Steering(config),
        solve_rates=SolveRates(config),
        lookahead=Lookahead(steps=config.steps, max_lag=config.rollout.max_lag),
    )
    return made, engines, recorded


def config(method: str, **changes: Any) -> Config:
    raw: dict[str, Any] = {"method": method, "steps": 10, "evaluation": {"every": 4}, "learner": {"beta": 0.0}}
    return Config.model_validate(raw | changes)


def versions(made: Run, recorded: Recorded, first: int = 0) -> list[int]:
    """Those published while a run goes from `first` to its end."""
    for version in range(first, made.config.steps + 1):
        made.publish(version)
        assert made.version == version
        assert made.served == recorded.versions[-1]
        made.tracker.history.evaluations[version] = {}
    return recorded.versions


@pytest.mark.parametrize(
    ("method", "changes", "published"),
    [
        ("grpo", {}, list(range(11))),
        ("exact", {"exact": {"sampled_share": 0.25}}, list(range(11))),
        ("exact", {}, [0, 4, 8, 10]),
        ("sft", {}, [0, 4, 8, 10]),
        ("sft", {"evaluation": {"every": 0}}, [0, 10]),
    ],
)
def test_engines_are_given_the_weights_they_are_asked_about(
    method: str, changes: dict[str, Any], published: list[int]
) -> None:
    made, _, recorded = run(config(method, **changes))
    assert versions(made, recorded) == published


def test_a_resumed_run_first_gives_engines_the_weights_it_goes_on_with() -> None:
    made, _, recorded = run(config("exact"), evaluated=[0, 4])
    assert versions(made, recorded, first=6) == [6, 8, 10]
    made, _, recorded = run(config("exact"), held_out=False)
    assert versions(made, recorded) == [0, 10], "at the end for whoever looks at them"


def test_a_step_is_written_and_sampled_and_its_books_balance() -> None:
    """Law 6, and the seeds that GRPO alone would have drawn with."""
    mixed = config("exact", exact={"sampled_share": 0.25})
    made, engines, _ = run(mixed)
    made.offline = writer("exact", exact={"sampled_share": 0.25})
    prompts = [prompt(row(number)) for number in range(16)]
    made.asked = made._ask(3, [(one, 0) for one in prompts])  # noqa: SLF001
    *groups, failed = made.groups(prompts)
    assert isinstance(failed, FailedGroup)
    assert [isinstance(one, Group) and one.origin == "given" for one in groups] == [True] * 12 + [False] * 3
    assert {one.seed for one in engines.asked} == {request_seed(mixed.seed, 3, one.prompt_id) for one in engines.asked}
    assert len({group.prompt_id for group in groups[:12]} | {one.prompt_id for one in engines.asked}) == 16
    assert made.ledger.pending == 16
    made.rewards = cast("Any", PassOn())
    assert [list(found) for found in made.score(prompts, [failed])] == []
    assert made.ledger.counts() == {"dispatched": 16, "trained": 0, "dropped": 1, "failed": 1, "filtered": 0}


class Saves:
    """What was saved, and an error to raise in place of it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.steps: list[int] = []
        self.events: list[str] = []
        self.newest: int | None = None
        self._error = error

    def maybe_save(self, step: int, *, due: bool, **_: Any) -> None:
        if self._error:
            raise self._error
        if due:
            self.steps.append(step)
            self.newest = step

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append(f"{kind} {fields['why']}")


def stopped_run(error: BaseException | None = None) -> tuple[Run, Saves]:
    """A run that has done three steps of ten."""
    made, _, _ = run(config("grpo"))
    saves = Saves(error)
    made.checkpoints = cast("Any", saves)
    made.tracker = cast(
        "Any", SimpleNamespace(event=saves.event, history=SimpleNamespace(find_measure=lambda *_: None))
    )
    made.version = 3
    made.whole = DriverState(step=3, config=made.config, stream={}, counts={}, control={})
    return made, saves


def test_sigterm_saves_the_last_whole_step_once() -> None:
    made, saves = stopped_run()
    made.save_before_leaving()
    made.save_before_leaving()
    assert saves.steps == [3]


def test_sigterm_saves_nothing_before_the_first_step_or_within_one_or_of_what_is_saved() -> None:
    made, saves = stopped_run()
    saves.newest = 3
    made.save_before_leaving()
    made, saves = stopped_run()
    made.whole = None
    made.save_before_leaving()
    made, saves = stopped_run()
    made.grace.over = True
    made.save_before_leaving()
    assert saves.steps == []


def test_a_save_that_fails_at_sigterm_is_an_event() -> None:
    made, saves = stopped_run(RuntimeError("a rank got the signal too"))
    made.save_before_leaving()
    assert saves.events == ["checkpoint_failed RuntimeError: a rank got the signal too"]
    made, _ = stopped_run(Terminated())
    with pytest.raises(Terminated):
        made.save_before_leaving()


def test_steps_that_are_no_number_are_left_out_and_stop_a_run_in_the_end(tmp_path: Path) -> None:
    """Law 6 holds, nothing is published, and what was in the last batch is on disk."""
    made, _, _ = run(config("grpo", learner={"beta": 0.0, "max_skipped_steps": 2}))
    events: list[tuple[str, dict[str, Any]]] = []
    books: list[StepBooks] = []
    made.tracker = cast(
        "Any",
        SimpleNamespace(
            event=lambda kind, **fields: events.append((kind, fields)),
            keep_batch=lambda step, scored: tmp_path / f"batch-{step}",
            keep_books=books.append,
            attempt=2,
        ),
    )
    made.feed = cast("Any", SimpleNamespace(state=lambda: StreamState(rows=1, epoch=0, position=0, deferred=())))
    made.version = 3
    scored, broken = tiny.ragged(), tiny.step_result(loss=float("nan"), updates=0)
    batch = StepBatch(made.config)
    batch.ask([(one.prompt, 5) for one in scored])
    batch.add(scored)
    for number in (1, 2):
        made.ledger.dispatched += len(scored)
        made.skip(3, batch, broken)
        assert (made.version, made.skipped_in_a_row, made.ledger.pending) == (3, number, 0)
        assert made.whole is not None
        assert made.whole.counts["dropped"] == number * len(scored)
    with pytest.raises(LearnerError, match=r"3 times in a row[\s\S]*loss nan[\s\S]*batch-3"):
        made.skip(3, batch, broken)
    assert [kind for kind, _ in events] == ["step_skipped"] * 3
    assert [(row.step, row.skipped, row.attempt, row.dropped) for row in books] == [
        (3, True, 2, number * len(scored)) for number in (1, 2, 3)
    ]
    assert {(one.prompt, one.epoch, one.fate) for one in books[0].groups} == {
        (one.prompt.id, 5, "skipped") for one in scored
    }


def measured(*accuracies: float | None) -> History:
    """The history of a run that is evaluated every 2 steps."""
    history = History()
    for number, accuracy in enumerate(accuracies):
        history.add_evaluation(2 * number, {"accuracy": accuracy, "lenient": 1.0})
    return history


@pytest.mark.parametrize(
    ("history", "keys", "end"),
    [
        (measured(0.1, 0.5, 0.5, 0.4), {"stop_after": 2}, 6),
        (measured(0.1, 0.5, 0.5, 0.4), {}, 10),
        (measured(0.1, 0.5, 0.5, 0.4), {"stop_after": 3}, 10),
        (measured(0.1, 0.5, 0.6, 0.7), {"stop_after": 2}, 10),
        (measured(0.1, 0.5, 0.6, 0.7), {"stop_after": 2, "stop_delta": 0.3}, 6),
        (measured(0.5, None, 0.5, 0.4), {"stop_after": 3}, 10),
    ],
)
def test_a_plateau_ends_a_run_where_it_is(history: History, keys: dict[str, Any], end: int) -> None:
    """Every later step of a run that ends there is not taken, and its weights are published and saved as the last."""
    made, _, _ = run(config("sft", evaluation={"every": 2, **keys}))
    made.tracker = cast("Any", SimpleNamespace(history=history))
    made.version = 6
    assert made.end == end
    assert (made.plateau is None) is (end == 10)
    made.checkpoints = cast("Any", Saves())
    made.grace.hold()
    made.save()
    assert cast("Any", made.checkpoints).steps == ([6] if end == 6 else [])
    made.version = 10
    assert made.plateau is None, "it has taken all its steps"


def test_a_plateau_is_of_the_measure_that_checkpoints_are_kept_by() -> None:
    made, _, _ = run(config("sft", evaluation={"every": 2, "stop_after": 2}, checkpoint={"best_by": "lenient"}))
    made.tracker = cast("Any", SimpleNamespace(history=measured(0.1, 0.2, 0.3, 0.4)))
    made.version = 6
    assert made.plateau == "lenient did not rise above 1.000 in 2 evaluations"


def test_a_run_resumed_between_evaluations_is_evaluated_before_it_ends() -> None:
    """`stop_after` was lowered: the weights that it ends with are measured, and if they are better it goes on."""
    made, _, _ = run(config("sft", evaluation={"every": 2, "stop_after": 1}))
    history = measured(0.5, 0.4)
    made.tracker = cast("Any", SimpleNamespace(history=history))
    made.version = 3
    assert made.end == 3
    assert made._find_due_sets()  # noqa: SLF001  # `evaluate` needs engines
    history.add_evaluation(3, {"accuracy": 0.6})
    assert made.end == 10
    assert not made._find_due_sets()  # noqa: SLF001
