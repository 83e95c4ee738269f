"""Faults of engines, on modelled ones: every request is answered once, with the very tokens of a run left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from typing import Any

import pytest

from common.errors import EngineError
from common.types import FailedGroup, Group
from rollout.fleet import life
from tests.faults.fleets import NOTICE_S, RETURN_S, WITHIN_S, Events, check, find_pid, pids, serve
from tests.helpers.modelled import Model, make_manifest, make_requests

pytestmark = pytest.mark.usefixtures("ray_session")


def test_all_engines_work_and_a_batch_is_answered(start: Any, events: Events) -> None:
    fleet = start(3, Model(service_s=0.03))
    assert [info.engine_id for info in fleet.ready()] == ["engine-0", "engine-1", "engine-2"]
    fleet.publish(make_manifest(0))
    requests = make_requests(60, names={7: "refused/7"})
    found = list(fleet.generate(requests))
    check(requests, found, 0)
    assert [one.prompt_id for one in found if isinstance(one, FailedGroup)] == ["refused/7"]
    assert len({one.engine_id for one in found if isinstance(one, Group)}) == 3
    assert list(fleet.generate([])) == []


def test_an_engine_killed_at_work_loses_nothing(start: Any, events: Events) -> None:
    fleet = start(2, Model(service_s=0.01))
    fleet.ready()
    fleet.publish(make_manifest(3))
    requests = make_requests(60)
    stream = fleet.generate(requests)
    found = [next(stream)]
    os.kill(random.choice(pids(fleet)), signal.SIGKILL)
    found += stream
    check(requests, found, 3)
    assert len(events.of("engine_lost")) == 1, "the fault came too late to matter"


def test_an_idle_engine_that_dies_is_noticed_and_replaced_in_time(start: Any, events: Events, measure: Any) -> None:
    began = time.monotonic()
    fleet = serve(start, 2, Model())
    startup = time.monotonic() - began
    killed = time.monotonic()
    os.kill(pids(fleet)[0], signal.SIGKILL)
    events.wait("engine_lost")
    noticed = time.monotonic() - killed
    measure("a death is noticed", noticed)
    assert noticed < NOTICE_S
    fleet.publish(make_manifest(1))  # waits for nobody (F3)
    assert time.monotonic() - killed < 2 * NOTICE_S
    fleet.ready()
    back = time.monotonic() - killed
    measure("beyond its start-up, it serves again", max(0.0, back - startup))
    assert back < startup + RETURN_S
    assert len(pids(fleet)) == 2
    assert fleet.restarts == 1


def test_an_engine_that_hangs_is_replaced_at_its_deadline(
    start: Any, events: Events, monkeypatch: pytest.MonkeyPatch, measure: Any
) -> None:
    monkeypatch.setattr(life, "FRESH_S", 1.5)
    monkeypatch.setattr(life, "LEAST_S", {"cpu": 1.5})
    fleet = serve(start, 2, Model(service_s=0.01))
    requests = make_requests(40)
    stream = fleet.generate(requests)
    found = [next(stream)]
    os.kill(find_pid(fleet, found[0]), signal.SIGSTOP)  # it is at work; within a load it would have longer
    began = time.monotonic()
    found += stream
    check(requests, found, 0)
    (lost,) = events.wait("engine_lost", timeout_s=10)  # another engine has done its work meanwhile
    measure("a hang is noticed, its deadline 1.5 s", time.monotonic() - began)
    assert "no sign of life" in lost["why"] or "made no step" in lost["why"]


def test_a_prompt_that_ends_engines_is_answered_as_failed(start: Any, events: Events) -> None:
    fleet = serve(start, 2, Model())
    requests = make_requests(20, names={4: "poison/4"})
    found = list(fleet.generate(requests))
    check(requests, found, 0)
    (failed,) = [one for one in found if isinstance(one, FailedGroup)]
    assert failed.prompt_id == "poison/4"
    assert "engines are lost with it" in failed.reason
    assert len(list(fleet.generate(make_requests(10)))) == 10


def test_only_prompts_that_end_engines_do_not_end_the_run(start: Any) -> None:
    fleet = serve(start, 1, Model(), max_restarts=2)
    found = list(fleet.generate(make_requests(2, names={0: "poison/0", 1: "poison/1"})))
    assert [type(one) for one in found] == [FailedGroup, FailedGroup]


def test_a_driver_that_slept_condemns_nobody(start: Any, events: Events) -> None:
    """F4: what arrived meanwhile is taken first, and the sleep counts for no engine."""
    fleet = serve(start, 4, Model(service_s=0.05), step_timeout_s=1.0)
    requests = make_requests(40)
    batch = fleet.ask(requests)
    ctrl_z = subprocess.Popen(["sh", "-c", f"kill -STOP {os.getpid()}; sleep 3; kill -CONT {os.getpid()}"])
    check(requests, list(fleet.take(batch)), 0)
    assert ctrl_z.wait(30) == 0
    time.sleep(1.5)
    assert not events.of("engine_lost")


def test_one_engine_that_ends_while_it_starts_holds_up_nobody(start: Any, events: Events) -> None:
    """F14: the run begins with the others, and another engine starts."""
    fleet = start(3, Model(stillborn=frozenset({"engine-1"})))
    assert len(fleet.ready()) >= 2
    fleet.publish(make_manifest(0))
    requests = make_requests(20)
    check(requests, list(fleet.generate(requests)), 0)
    assert fleet.restarts == 1


def test_engines_that_never_start_end_the_run_with_the_cause(start: Any, events: Events, measure: Any) -> None:
    stillborn = frozenset(f"engine-{number}" for number in range(10))
    began = time.monotonic()
    with pytest.raises(EngineError, match="no rollout engine is left"):
        start(1, Model(stillborn=stillborn), max_restarts=2).ready()
    assert len(events.of("engine_lost")) == 3
    measure("an exhausted ring is an error", time.monotonic() - began)
    assert time.monotonic() - began < WITHIN_S
    with pytest.raises(EngineError, match="this engine cannot be built"):
        start(1, Model(raises=frozenset({"engine-0"}))).ready()


def test_a_place_that_is_given_up_leaves_the_others_at_work(start: Any, events: Events) -> None:
    stillborn = frozenset(f"engine-{number}" for number in range(1, 10))
    fleet = serve(start, 2, Model(stillborn=stillborn), max_restarts=1)
    while not events.of("engine_given_up"):
        check(make_requests(10), list(fleet.generate(make_requests(10))), 0)
    check(make_requests(10), list(fleet.generate(make_requests(10))), 0)


def test_an_engine_that_fails_by_itself_is_replaced_and_twice_in_a_row_it_is_a_bug(start: Any, events: Events) -> None:
    fleet = serve(start, 2, Model())
    requests = make_requests(8, names={3: "fault/3"})
    found = list(fleet.generate(requests))
    check(requests, found, 0)
    assert [one.prompt_id for one in found if isinstance(one, FailedGroup)] == ["fault/3"]

    fleet = start(1, Model(forgetful=frozenset({"engine-0"})))
    fleet.ready()
    with pytest.raises(EngineError, match="reports weights it was not given"):
        fleet.publish(make_manifest(0))


def test_a_slow_engine_ends_with_little_work(start: Any) -> None:
    """F9: dealt out evenly, it would take ten times as long as the others."""
    fleet = serve(start, 4, Model(service_s=0.01, slow={"engine-2": 10.0}))
    requests = make_requests(128)
    list(fleet.generate(requests[:16]))
    began = time.monotonic()
    found = list(fleet.generate(requests))
    took = time.monotonic() - began
    check(requests, found, 0)
    assert took < 0.8 * (32 * 0.1)
    assert Counter(one.engine_id for one in found if isinstance(one, Group))["engine-2"] < 24


def test_batches_of_two_versions_are_each_sampled_under_their_own(start: Any, events: Events) -> None:
    fleet = serve(start, 2, Model(load_s=0.05))
    first = fleet.ask(make_requests(30))
    fleet.publish(make_manifest(1))  # waits for nobody: engines are busy with the older one
    second = fleet.ask(make_requests(30))
    check(make_requests(30), list(fleet.take(second)), 1)
    check(make_requests(30), list(fleet.take(first)), 0)
    assert [row["version"] for row in events.of("weights_loaded")] == [0, 1]


def test_a_batch_that_is_abandoned_is_not_sampled_to_its_end(start: Any) -> None:
    fleet = serve(start, 1, Model(service_s=0.05))
    stream: Any = fleet.generate(make_requests(100))
    next(stream)
    stream.close()
    began = time.monotonic()
    check(make_requests(3), list(fleet.generate(make_requests(3))), 0)
    assert time.monotonic() - began < 2.0


def test_an_engine_that_comes_after_a_broadcast_gets_the_weights_as_bytes_or_waits_for_the_next(
    start: Any, events: Events
) -> None:
    """It is in no NCCL group: it takes part in no broadcast, and waits for no copy that nobody makes any more."""
    fleet = start(2, Model(service_s=0.04, slow={"engine-1": 5.0}))  # which alone would take a minute
    made: list[int] = []

    def copy() -> Any:
        made.append(0)
        return make_manifest(0)

    fleet.copy_of_weights = copy
    fleet.ready()
    fleet.join({"rank_offset": 1}, fleet.engines, timeout_s=30)
    fleet.publish(make_manifest(0, by_nccl=True))
    requests = make_requests(300)
    stream = fleet.generate(requests)
    found = [next(stream)]
    os.kill(pids(fleet)[0], signal.SIGKILL)
    found += stream
    check(requests, found, 0)
    assert made == [0]
    assert "engine-2" in {one.engine_id for one in found if isinstance(one, Group)}

    os.kill(pids(fleet)[0], signal.SIGKILL)
    assert len(fleet.ready()) == 2
    for _ in range(20):  # too short for a copy: each is over before one comes
        check(make_requests(1), list(fleet.generate(make_requests(1))), 0)
    fleet.join({"rank_offset": 1}, fleet.engines, timeout_s=30)
    fleet.publish(make_manifest(1, by_nccl=True))
    held: set[int | None] = set()
    began = time.monotonic()
    while held != {1}:
        held = set(fleet.versions().values())
        assert time.monotonic() - began < 10
