"""The reward actor without Ray: what functions are given, what comes back, and how each failure is named."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from rollout.reward_actor import RewardActor, RewardFault, RewardTask

CONSTANTS = {"mode": "no_think", "aliases": {"dog": ["hound"]}, "length_target": 4}
HERE = "tests.helpers.hostile_rewards"


def task(number: int = 0, *, label: str = "cat", texts: tuple[str, ...] = ("cat", "dog"), **columns: Any) -> RewardTask:
    return RewardTask(
        prompt_id=f"train/{number}",
        problem="what",
        label=label,
        columns=columns,
        completions=texts,
        token_ids=tuple((5,) * (1 + len(text)) for text in texts),
        candidate_probabilities=tuple({"cat": 0.75, "dog": 0.25} for _ in texts),
    )


def score(function: str, *tasks: RewardTask, timeout_s: float = 10.0) -> list[Any]:
    return RewardActor([function], CONSTANTS, timeout_s).score(tasks, [function])


def test_every_function_scores_every_task_against_its_own_label() -> None:
    actor = RewardActor(["accuracy", "format"], CONSTANTS, 10.0)
    outcomes = actor.score([task(label="cat"), task(label="dog", texts=("", "dog", "ox"))], ["accuracy", "format"])
    assert outcomes == [
        {"accuracy": (1.0, 0.0), "format": (1.0, 1.0)},
        {"accuracy": (0.0, 1.0, 0.0), "format": (0.0, 1.0, 1.0)},
    ]


def test_other_columns_of_the_row_are_handed_over_and_cannot_replace_ours() -> None:
    assert score(f"{HERE}:bonus", task(bonus=0.25)) == [{f"{HERE}:bonus": (0.25, 0.25)}]
    assert score("accuracy", task(label="dog"), task(label="dog", mode="think")) == [{"accuracy": (0.0, 1.0)}] * 2
    assert score("accuracy", task(label="dog", texts=("hound", "cat"), aliases={"dog": ["cat"]})) == [
        {"accuracy": (1.0, 0.0)}
    ]
    assert score("accuracy", task(label="dog", prompt_id=3, problem="")) == [{"accuracy": (0.0, 1.0)}]


def test_tokens_probabilities_and_what_is_set_once_reach_the_function_that_names_them() -> None:
    assert score("length", task(texts=("cat", "catfish"))) == [{"length": (1.0, 0.0)}]
    assert score("marginal", task(), task(label="dog")) == [{"marginal": (0.75, 0.75)}, {"marginal": (0.25, 0.25)}]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raises", r"raised ValueError: no such taxonomy \(.*hostile_rewards\.py:\d+\)"),
        ("exits", "raised SystemExit: 0"),
        ("nan", "returned nan for completion 0, not a finite number"),
        ("infinite", "returned inf for completion 0"),
        ("huge", r"returned -1e\+39 for completion 0, over 1e\+15 in size"),
        ("none", "returned NoneType, not one number a completion"),
        ("holes", "returned None for completion 0"),
        ("words", "returned '1.0' for completion 0"),
        ("short", "returned 1 values for 2 completions"),
        ("stream", "returned generator, not one number a completion"),
        ("bonus", "raised TypeError: .*missing 1 required keyword-only argument: 'bonus'"),
    ],
)
def test_a_failing_function_is_named_with_its_reason(function: str, reason: str) -> None:
    (fault,) = score(f"{HERE}:{function}", task())
    assert isinstance(fault, RewardFault)
    assert fault.function == f"{HERE}:{function}"
    assert not fault.hung
    assert re.search(reason, fault.reason)


def test_a_failure_leaves_the_other_tasks_alone() -> None:
    good, bad, last = score(f"{HERE}:nan_on_odd", task(0), task(1), task(2))
    assert good == last == {f"{HERE}:nan_on_odd": (1.0, 1.0)}
    assert isinstance(bad, RewardFault)


def test_a_hang_is_named_after_the_time_limit_and_ends_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("tests.helpers.hostile_rewards.time.sleep", release.wait)
    outcomes = score(f"{HERE}:hangs_on_odd", task(0), task(1), task(2), timeout_s=0.2)
    release.set()
    assert outcomes == [
        {f"{HERE}:hangs_on_odd": (1.0, 1.0)},
        RewardFault(function=f"{HERE}:hangs_on_odd", reason="took longer than 0.2 s", hung=True),
    ]


def test_a_reply_is_not_held_back_beyond_the_time_limit() -> None:
    outcomes = score(f"{HERE}:slow", *[task(number) for number in range(9)], timeout_s=0.3)
    assert 2 <= len(outcomes) < 9
    assert all(outcome == {f"{HERE}:slow": (1.0, 1.0)} for outcome in outcomes)
