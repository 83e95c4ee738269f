"""The reward pool on a real local Ray: pairing, streaming, and functions that hang, die or answer nonsense."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.config.schema import DataConfig, RewardConfig
from common.errors import DeadlineError, RewardError
from common.placement import get
from common.types import FailedGroup, Group, Prompt, ScoredGroup
from rollout import reward_pool
from rollout.reward_pool import RewardPool
from tests.helpers.reward_parts import group, prompt
from tests.helpers.slow_reward import note_folder

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("ray_session")]

HERE = "tests.helpers.hostile_rewards"


@contextmanager
def open_pool(config: RewardConfig, events: list[dict[str, Any]] | None = None) -> Iterator[RewardPool]:
    events = events if events is not None else []
    pool = RewardPool(config, DataConfig(), on_event=lambda kind, **fields: events.append({"kind": kind, **fields}))
    try:
        yield pool
    finally:
        pool.close()


def batch(size: int) -> tuple[dict[str, Prompt], list[Group]]:
    """Prompt k has label "class k"; its completions are right, wrong, right."""
    prompts = [prompt(number, f"class {number}") for number in range(size)]
    groups = [group(number, (f"class {number}", "no", f"class {number}")) for number in range(size)]
    return {one.id: one for one in prompts}, groups


def scored(outcomes: Sequence[ScoredGroup | FailedGroup]) -> dict[str, tuple[float, ...]]:
    return {one.prompt.id: one.rewards for one in outcomes if isinstance(one, ScoredGroup)}


def dropped(outcomes: Sequence[ScoredGroup | FailedGroup]) -> dict[str, str]:
    return {one.prompt_id: one.reason for one in outcomes if isinstance(one, FailedGroup)}


@pytest.mark.parametrize("workers", [1, 2])
def test_each_prompt_is_graded_against_its_own_label(workers: int) -> None:
    """Fault 5: prompt B graded against the label of A as soon as there are two."""
    prompts, groups = batch(9)
    functions = {"accuracy": 2.0, "format": 0.5, f"{HERE}:prompt_number": 10.0}
    with open_pool(RewardConfig(functions=functions, workers=workers)) as pool:
        outcomes = list(pool.score(prompts, reversed(groups)))
        again = list(pool.score(prompts, groups[:2]))
    assert scored(outcomes) == {f"train/{k}": (2.5 + 10 * k, 0.5 + 10 * k, 2.5 + 10 * k) for k in range(9)}
    assert scored(again).keys() == {"train/0", "train/1"}
    first = next(one for one in outcomes if isinstance(one, ScoredGroup) and one.prompt.id == "train/1")
    assert list(first.rewards_by_name) == list(functions)
    assert first.rewards_by_name["accuracy"] == (1.0, 0.0, 1.0)
    assert (pool.restarts, pool.rescored) == (0, 0)


def test_scoring_overlaps_with_sampling() -> None:
    prompts, groups = batch(3)
    done: list[str] = []

    def sampled() -> Iterator[Group]:
        for one in groups:
            yield one
            time.sleep(0.5)  # the engine is at work
        done.append("sampling")

    with open_pool(RewardConfig()) as pool:
        pool.pids()
        done.extend(type(outcome).__name__ for outcome in pool.score(prompts, sampled()))
    assert done.index("sampling") >= 1, "the first group was held back until the last was sampled"


def test_groups_that_somebody_waits_for_are_scored_before_another_is_taken() -> None:
    """And one that has failed before is passed on, in any form of the groups."""
    prompts, groups = batch(6)
    failed = FailedGroup(prompt_id="train/9", reason="too long")
    taken: list[int] = []
    found: list[ScoredGroup | FailedGroup] = []

    def sampled() -> Iterator[Group | FailedGroup]:
        every: list[Group | FailedGroup] = [*groups[:3], failed, *groups[3:]]
        for one in every:
            taken.append(len(found))
            yield one

    with open_pool(RewardConfig()) as pool:
        for outcome in pool.score(prompts, sampled(), hurry=lambda: len(taken) == 4):
            found.append(outcome)  # noqa: PERF402  # `sampled` looks at it meanwhile
        assert failed in pool.score(prompts, [groups[0], failed])
    assert taken[4] == 4, "three were scored and one had failed"
    assert failed in found and len(scored(found)) == 6


def test_groups_that_arrive_together_travel_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, groups = batch(8)
    calls: list[int] = []
    send = RewardPool._send  # noqa: SLF001

    def count(pool: RewardPool, worker: Any, jobs: Any, functions: Any, *, alone: bool) -> None:
        calls.append(len(jobs))
        send(pool, worker, jobs, functions, alone=alone)

    monkeypatch.setattr(RewardPool, "_send", count)
    with open_pool(RewardConfig()) as pool:
        pool.pids()
        arrived = iter(groups)
        left = iter([*range(4, -1, -1), *range(2, -1, -1)])  # behind each of a burst of five and one of three
        outcomes = list(pool.score(prompts, arrived, more=lambda wait_s: bool(next(left))))
    assert calls == [5, 3]
    assert len(scored(outcomes)) == 8


def test_the_actor_needs_no_torch() -> None:
    prompts, groups = batch(1)
    name = f"{HERE}:heavy_imports"
    with open_pool(RewardConfig(functions={"accuracy": 1.0, name: 1.0})) as pool:
        (outcome,) = pool.score(prompts, groups)
    assert isinstance(outcome, ScoredGroup)
    assert outcome.rewards_by_name[name] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("function", "reason", "restarts"),
    [
        ("nan_on_odd", "returned nan for completion 0", range(1)),
        ("hangs_on_odd", "took longer than 0.5 s", range(3, 4)),
        ("dies_on_odd", "killed its process", range(4, 7)),
    ],
)
def test_drop_names_the_function_and_scores_the_rest(function: str, reason: str, restarts: range) -> None:
    prompts, groups = batch(6)
    name = f"{HERE}:{function}"
    config = RewardConfig(functions={"accuracy": 1.0, name: 1.0}, on_error="drop", timeout_s=0.5)
    with open_pool(config) as pool:
        outcomes = list(pool.score(prompts, groups))
    assert scored(outcomes) == {f"train/{k}": (2.0, 1.0, 2.0) for k in (0, 2, 4)}
    assert dropped(outcomes).keys() == {"train/1", "train/3", "train/5"}
    assert all(name in text and reason in text for text in dropped(outcomes).values())
    assert pool.restarts in restarts


@pytest.mark.parametrize("function", ["nan_on_odd", "hangs_on_odd", "dies_on_odd"])
def test_stop_names_the_function_and_the_prompt(function: str) -> None:
    """Fault 13: an error in a reward is never a silent 0."""
    prompts, groups = batch(2)
    name = f"{HERE}:{function}"
    with open_pool(RewardConfig(functions={name: 1.0}, timeout_s=0.5)) as pool:
        with pytest.raises(RewardError, match=f"{name} failed on prompt train/1"):
            list(pool.score(prompts, groups))
        assert scored(list(pool.score(prompts, groups[:1]))) == {"train/0": (1.0, 1.0, 1.0)}, "the stop left leftovers"


def test_a_function_that_holds_the_interpreter_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_pool, "ANSWER_S", 1.0)
    prompts, groups = batch(3)
    name = f"{HERE}:holds_the_interpreter"
    config = RewardConfig(functions={name: 1.0}, on_error="drop", timeout_s=0.5)
    with open_pool(config) as pool:
        outcomes = list(pool.score(prompts, groups))
    assert scored(outcomes).keys() == {"train/0", "train/2"}
    assert dropped(outcomes) == {"train/1": f"reward {name}: hung for over 0.5 s"}
    assert pool.restarts == 2


def test_a_process_killed_from_outside_costs_no_group(tmp_path: Path) -> None:
    witness = tmp_path / "died"
    prompts = {"train/0": prompt(0, "cat", witness=str(witness))}
    with open_pool(RewardConfig(functions={f"{HERE}:dies_once": 1.0})) as pool:
        outcomes = list(pool.score(prompts, [group(0, ("cat", "dog"))]))
        assert witness.exists()
        assert scored(outcomes) == {"train/0": (1.0, 1.0)}
        assert (pool.restarts, pool.rescored) == (1, 1)


def test_an_idle_actor_that_was_killed_is_replaced() -> None:
    """The event says which and why."""
    prompts, groups = batch(2)
    events: list[dict[str, Any]] = []
    with open_pool(RewardConfig(), events) as pool:
        (victim,) = pool.pids()
        os.kill(victim, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(victim)] if psutil.pid_exists(victim) else [], timeout=10)
        assert scored(list(pool.score(prompts, groups))).keys() == {"train/0", "train/1"}
        assert pool.restarts == 1
    lost, back = (one for one in events if one.get("pid") != victim)
    assert (lost["kind"], lost["worker"], back["kind"]) == ("reward_worker_lost", "reward-0", "reward_worker_up")
    assert "worker process has died" in lost["why"]


SLOW = "tests.helpers.slow_reward:accuracy"


@pytest.mark.parametrize("times", [1, 99])
def test_an_actor_that_is_killed_while_it_starts_is_started_again(times: int) -> None:
    """Three in a row that never come up end the run, with what killed them."""
    prompts, groups = batch(2)
    events: list[dict[str, Any]] = []
    config = RewardConfig(functions={SLOW: 1.0})
    killed: set[Path] = set()
    done: list[Any] = []
    before = set(note_folder().iterdir())
    with open_pool(config, events) as pool, ThreadPoolExecutor(1) as thread:
        outcomes = thread.submit(lambda: done.extend(pool.score(prompts, groups)))
        while not outcomes.done():
            for note in set(note_folder().iterdir()) - before - killed if len(killed) < times else ():
                os.kill(int(note.name), signal.SIGKILL)
                killed.add(note)
            time.sleep(0.05)
        if times == 1:
            outcomes.result()
            assert scored(done).keys() == {"train/0", "train/1"}
            assert [one["kind"] for one in events] == ["reward_worker_lost", "reward_worker_up"]
        else:
            with pytest.raises(RewardError, match=r"3 workers in a row did not come up, the last: .*(died|never ran)"):
                outcomes.result()
            assert len(killed) == 3
    assert all("while it started" in one["why"] for one in events if one["kind"] == "reward_worker_lost")


def test_a_worker_that_is_lost_holds_no_other_up() -> None:
    """Its successor takes 4 s to load: the other worker has scored everything by then."""
    prompts, groups = batch(6)
    with open_pool(RewardConfig(functions={SLOW: 1.0}, workers=2)) as pool:
        victim, _ = pool.pids()
        list(pool.score(prompts, groups[:1]))
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        assert scored(list(pool.score(prompts, groups))).keys() == prompts.keys()
        assert pool.restarts == 1
        assert time.monotonic() - began < 4


def test_an_actor_that_cannot_start_says_so() -> None:
    prompts, groups = batch(1)
    config = RewardConfig(functions={"no_such_package:f": 1.0})
    with (
        open_pool(config) as pool,
        pytest.raises(RewardError, match=r"could not start\n.*cannot import no_such_package"),
    ):
        list(pool.score(prompts, groups))


def test_a_wait_that_runs_out_says_what_for_and_how_long() -> None:
    import ray

    def sleep(seconds: float) -> None:
        time.sleep(seconds)

    sleeper: Any = ray.remote(sleep)
    with pytest.raises(DeadlineError, match=r"waited too long for the sleeper\n.*1 of 1 still missing after 0.1 s"):
        get([sleeper.remote(2)], what="the sleeper", timeout_s=0.1)


def test_close_leaves_no_process() -> None:
    with open_pool(RewardConfig(workers=2)) as pool:
        processes = [psutil.Process(pid) for pid in pool.pids()]
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


@pytest.mark.parametrize(("weight", "total"), [(2.0, r"2e\+15"), (1e6, r"1e\+21")])
def test_a_sum_that_the_learner_could_not_compare_is_refused(weight: float, total: str) -> None:
    """Rewards that float32 can hold, with a weight that makes their sum too large."""
    prompts = {"train/0": prompt(0, "cat")}
    name = f"{HERE}:large"
    with (
        open_pool(RewardConfig(functions={name: weight})) as pool,
        pytest.raises(RewardError, match=f"{name} failed on prompt train/0\n.*the weighted sum is {total}, over"),
    ):
        list(pool.score(prompts, [group(0, ("cat", "dog"))]))
