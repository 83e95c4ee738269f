"""Faults on the way of weights to engines: damaged bytes, engines that are slow to load, joiners that come late."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import replace
from typing import Any

import pytest

from common.errors import EngineError
from common.types import Group
from rollout.fleet import life
from tests.faults.fleets import Events, check, pids, serve
from tests.helpers.modelled import Model, make_manifest, make_requests

pytestmark = pytest.mark.usefixtures("ray_session")


def test_bytes_that_arrive_damaged_are_fetched_again(start: Any, events: Events) -> None:
    fleet = start(2, Model(damaged={"engine-0": 1}))
    fleet.ready()
    fleet.publish(make_manifest(5, megabytes=0.5))
    requests = make_requests(60)
    check(requests, list(fleet.generate(requests)), 5)
    (damaged,) = events.wait("weights_damaged")
    assert (damaged["engine"], damaged["version"]) == ("engine-0", 5)
    assert not events.of("engine_lost")
    checksum = make_manifest(5, megabytes=0.5).checksum
    assert {(one.version, one.checksum) for one in fleet.take_loads()} == {(5, checksum)}


def test_an_engine_that_never_gets_sound_bytes_is_replaced(start: Any, events: Events) -> None:
    """Its node's memory may be at fault: nothing is sampled with what it holds."""
    fleet = start(2, Model(damaged={"engine-1": 99}))
    fleet.ready()
    fleet.publish(make_manifest(1, megabytes=0.5))
    (lost,) = events.wait("engine_lost")
    assert lost["engine"] == "engine-1" and "arrived damaged" in lost["why"]
    requests = make_requests(60)
    found = list(fleet.generate(requests))
    check(requests, found, 1)
    assert "engine-1" not in {one.engine_id for one in found if isinstance(one, Group)}


def test_weights_that_are_damaged_where_they_lie_are_served_by_nobody(start: Any, events: Events) -> None:
    fleet = serve(start, 2, Model())
    sound = make_manifest(1, megabytes=0.5)
    flipped = replace(sound, buckets=tuple(replace(one, xxh3=one.xxh3 ^ 1) for one in sound.buckets))
    with pytest.raises(EngineError, match="arrived damaged"):
        fleet.publish(flipped)
    assert len(events.of("weights_damaged")) >= 2
    assert 1 not in {one.version for one in fleet.take_loads()}


def test_an_engine_that_is_down_holds_up_no_publish_and_loads_the_newest_alone(start: Any, events: Events) -> None:
    """F3 and F5: of the versions that were published meanwhile none is kept for it."""
    fleet = serve(start, 2, Model(start_s=1.5))
    os.kill(pids(fleet)[0], signal.SIGKILL)
    events.wait("engine_lost")
    version, began = 0, time.monotonic()
    while len(events.of("engine_up")) < 3:
        version += 1
        published = time.monotonic()
        fleet.publish(make_manifest(version, megabytes=0.2))
        assert time.monotonic() - published < 1.4, "it waits for the one that is down"
        assert time.monotonic() - began < 30
    fleet.publish(make_manifest(version + 1, megabytes=0.2))
    held = set[int | None]()
    while held != {version + 1}:
        held = set(fleet.versions().values())
        assert time.monotonic() - began < 60
    loads = [one.version for one in fleet.take_loads() if one.engine == "engine-2"]
    assert version > 5
    assert len(loads) <= 3, f"{loads}: the newest when it came, one that was on its way, and the one after"


def test_an_engine_that_is_slow_to_load_is_waited_for_by_nobody(start: Any, events: Events) -> None:
    fleet = serve(start, 3, Model(load_s=0.3))
    for version in range(1, 4):
        fleet.publish(make_manifest(version))
        requests = make_requests(30)
        check(requests, list(fleet.generate(requests)), version)
    assert not events.of("engine_lost")


def test_an_engine_that_hangs_in_a_load_is_replaced_at_twenty_times_the_usual(
    start: Any, events: Events, monkeypatch: pytest.MonkeyPatch, measure: Any
) -> None:
    """Long before `weights.timeout_s`, which is ten minutes. The first load of a joiner may take as long as that."""
    monkeypatch.setattr(life, "LEAST_S", {"cpu": 1.5})
    fleet = serve(start, 2, Model(frozen={"engine-1": 4}))
    for version in range(1, 7):
        fleet.publish(make_manifest(version))
        requests = make_requests(20)
        check(requests, list(fleet.generate(requests)), version)
    began = time.monotonic()
    (lost,) = events.wait("engine_lost")
    measure("an engine that hangs in a load is lost", time.monotonic() - began)
    assert lost["engine"] == "engine-1"
    limit = re.fullmatch(r"did not load version \d of the weights for ([\d.]+) s", lost["why"])
    assert limit and 1.5 <= float(limit[1]) < 60, "more than the least only where the machine is slow"
    while len(events.of("engine_up")) < 3:
        assert time.monotonic() - began < 30
        time.sleep(0.05)
