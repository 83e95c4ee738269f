"""Newer weights for engines that are amid a batch, and what may go wrong with them."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from common.types import FailedGroup, GenerationRequest, Group, WeightManifest
from rollout.fleet import life
from rollout.fleet.batch import Batch
from rollout.fleet.fleet import RolloutFleet
from tests.faults.fleets import Events, find_pid
from tests.helpers.modelled import Model, draw, make_manifest, make_requests

pytestmark = pytest.mark.usefixtures("ray_session")
SLOW = Model(service_s=0.02)


def ask(start: Any, engines: int, model: Model, count: int, **rollout: Any) -> tuple[RolloutFleet, Batch]:
    """Ask a batch of a fleet that holds version 0, and takes newer ones amid it."""
    fleet = start(engines, model, update="in_flight", max_lag=4, **rollout)
    fleet.ready()
    fleet.publish(make_manifest(0, megabytes=0.2))
    return fleet, fleet.ask(make_requests(count))


def publish(fleet: RolloutFleet, version: int) -> WeightManifest:
    manifest = make_manifest(version, megabytes=0.2)
    fleet.publish(manifest)
    return manifest


def check(requests: Sequence[GenerationRequest], found: Sequence[Group | FailedGroup]) -> list[int]:
    """Each request is answered once, by the tokens of the version it names. Return the versions, as groups came."""
    assert Counter(one.prompt_id for one in found) == Counter(one.prompt_id for one in requests)
    by_id, versions = {one.prompt_id: one for one in requests}, []
    for group in found:
        assert isinstance(group, Group)
        assert group.completions == draw(by_id[group.prompt_id], group.weights_version).completions
        versions.append(group.weights_version)
    return versions


def take(answers: Iterator[Any], count: int) -> list[Any]:
    return [next(answers) for _ in range(count)]


def test_engines_go_on_with_newer_weights_amid_a_batch(start: Any, events: Events) -> None:
    fleet, batch = ask(start, 2, SLOW, 80)
    answers = fleet.take(batch)
    found = take(answers, 10)
    sent = [publish(fleet, 1)]
    found += take(answers, 30)
    sent.append(publish(fleet, 2))
    versions = check(make_requests(80), found + list(answers))
    assert set(versions) == {0, 1, 2}
    assert versions[:10] == [0] * 10 and set(versions[-10:]) == {2}
    loads = fleet.take_loads()
    for engine in ("engine-0", "engine-1"):
        held = {one.version: one.checksum for one in loads if one.engine == engine}
        assert held == {0: make_manifest(0, megabytes=0.2).checksum, 1: sent[0].checksum, 2: sent[1].checksum}
    assert not events.of("engine_lost")


def test_without_it_a_batch_is_of_one_version(start: Any) -> None:
    fleet = start(2, SLOW, max_lag=4)
    fleet.ready()
    fleet.publish(make_manifest(0, megabytes=0.2))
    batch = fleet.ask(make_requests(40))
    answers = fleet.take(batch)
    found = take(answers, 10)
    publish(fleet, 1)
    assert set(check(make_requests(40), found + list(answers))) == {0}


def test_the_newest_of_several_versions_is_loaded_alone(start: Any) -> None:
    fleet, batch = ask(start, 1, Model(service_s=0.3), 12)
    answers = fleet.take(batch)
    found = take(answers, 1)
    for version in range(1, 6):
        publish(fleet, version)
    versions = check(make_requests(12), found + list(answers))
    assert versions[-1] == 5
    assert len({one.version for one in fleet.take_loads()}) <= 3, "one may have been on its way"


def test_an_engine_that_comes_to_a_batch_late_begins_with_the_newest(start: Any, events: Events) -> None:
    fleet, batch = ask(start, 2, Model(service_s=0.02, slow={"engine-0": 50.0, "engine-1": 50.0}), 40)
    answers = fleet.take(batch)
    found = take(answers, 2)
    publish(fleet, 1)
    os.kill(find_pid(fleet, found[-1]), signal.SIGKILL)
    found += list(answers)
    check(make_requests(40), found)
    events.wait("engine_up", 3)
    joined = {one.weights_version for one in found if one.engine_id == "engine-2"}
    assert joined == {1}
    assert not {one.version for one in fleet.take_loads() if one.engine == "engine-2"} - {1}


def test_an_engine_whose_newer_weights_arrive_damaged_goes_on_with_those_it_holds(start: Any, events: Events) -> None:
    fleet, batch = ask(start, 1, SLOW, 60)
    answers = fleet.take(batch)
    found = take(answers, 5)
    sound = make_manifest(1, megabytes=0.2)
    fleet.publish(replace(sound, buckets=tuple(replace(one, xxh3=one.xxh3 ^ 1) for one in sound.buckets)))
    (damaged,) = events.wait("weights_damaged")
    assert (damaged["engine"], damaged["version"]) == ("engine-0", 1)
    found += take(answers, 10)
    publish(fleet, 2)
    versions = check(make_requests(60), found + list(answers))
    assert set(versions) == {0, 2}
    assert not events.of("engine_lost")


def test_an_engine_that_hangs_in_newer_weights_is_replaced(
    start: Any, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "LEAST_S", {"cpu": 1.5})
    monkeypatch.setattr(life, "FRESH_S", 3.0)
    fleet = start(2, Model(service_s=0.02, frozen={"engine-1": 4}), update="in_flight", max_lag=4)
    fleet.ready()
    for version in range(3):  # so that the pace of a load is known
        publish(fleet, version)
        list(fleet.generate(make_requests(20)))
    batch = fleet.ask(make_requests(80))
    answers = fleet.take(batch)
    found = take(answers, 10)
    publish(fleet, 3)
    began = time.monotonic()
    found += list(answers)
    assert set(check(make_requests(80), found)) == {2, 3}
    (lost,) = events.wait("engine_lost")
    assert lost["engine"] == "engine-1", lost
    assert time.monotonic() - began < 60
