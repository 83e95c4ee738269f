"""Who is told what, in which order; the transfers themselves are in test_weights.py and test_engine.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from common.errors import DeadlineError
from common.types import WeightBucket, WeightEntry
from learner.driver.weight_sync import WeightSync


class Manifest:
    """Weights of one float32 parameter."""

    checksum = "its checksum"

    def __init__(self, version: int) -> None:
        entry = WeightEntry(name="bias", dtype="float32", shape=(2,), index=0, start=0)
        self.version, self.buckets = version, (WeightBucket(entries=(entry,), xxh3=0, payload=None, kind="changing"),)


class Learner:
    def __init__(self, log: list[str]) -> None:
        self.log, self.sends, self.builds = log, True, 1

    def publish(self, version: int) -> Manifest:
        self.log.append(f"publish {version}")
        return Manifest(version)

    def copy(self, version: int) -> Manifest:
        self.log.append(f"copy {version}")
        return Manifest(version)

    def nccl_rendezvous(self, world_size: int, limit_s: float) -> dict[str, int]:
        self.log.append(f"rendezvous of {world_size}")
        return {"rank_offset": 1}

    def broadcast(self, version: int, limit_s: float) -> bool:
        self.log.append(f"broadcast {version}" if self.sends else f"broadcast {version} stuck")
        return self.sends


class Fleet:
    def __init__(self, log: list[str]) -> None:
        self.log, self.engines, self.joins = log, ["engine-0", "engine-1"], True
        self.copy_of_weights: Callable[[], Any] | None = None

    def list_responsive(self) -> list[str]:
        return self.engines

    def join(self, info: dict[str, int], engines: Sequence[str], *, timeout_s: float) -> None:
        self.log.append(f"{len(engines)} join")
        if not self.joins:
            raise DeadlineError("waited too long", got="1 of 2", remedy="none")

    def call_off(self, version: int) -> None:
        self.log.append(f"call off {version}")

    def broadcast(self, manifest: Manifest, send: Callable[[], bool]) -> bool:
        self.log.append(f"engines receive {manifest.version}")
        return send()

    def publish(self, manifest: Manifest) -> None:
        self.log.append(f"engines load {manifest.version}")


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def events() -> list[tuple[str, Any]]:
    return []


Events = list[tuple[str, Any]]


def publisher(log: list[str], events: Events, *, nccl: bool) -> tuple[WeightSync, Fleet, Learner]:
    fleet, learner = Fleet(log), Learner(log)
    parts: tuple[Any, Any] = (learner, fleet)
    return WeightSync(*parts, nccl=nccl, on_event=lambda kind, **said: events.append((kind, said))), fleet, learner


def test_the_object_store_needs_a_manifest_alone(log: list[str], events: Events) -> None:
    pair, _, _ = publisher(log, events, nccl=False)
    assert pair.publish(1) == "its checksum"
    assert log == ["publish 1", "engines load 1"]


def test_nccl_joins_once_and_broadcasts_while_the_engines_receive(log: list[str], events: Events) -> None:
    pair, _, _ = publisher(log, events, nccl=True)
    assert pair.publish(1) is None
    pair.publish(2)
    first = ["publish 1", "rendezvous of 3", "2 join", "engines receive 1", "broadcast 1"]
    assert log == [*first, "publish 2", "engines receive 2", "broadcast 2"]
    assert not events


@pytest.mark.parametrize("engines", [["engine-0"], ["engine-0", "engine-2"], ["engine-0", "engine-1", "engine-2"]])
def test_another_set_of_engines_is_another_epoch_and_late_ones_get_a_copy(
    log: list[str], events: Events, engines: list[str]
) -> None:
    pair, fleet, _ = publisher(log, events, nccl=True)
    pair.publish(1)
    assert fleet.copy_of_weights is not None
    assert fleet.copy_of_weights().version == 1
    fleet.engines = engines
    log.clear()
    pair.publish(2)
    assert log[:3] == ["publish 2", f"rendezvous of {1 + len(engines)}", f"{len(engines)} join"]
    assert fleet.copy_of_weights().version == 2


def test_a_group_that_is_not_complete_in_time_is_called_off_and_all_get_bytes(log: list[str], events: Events) -> None:
    """F17: an engine was lost while it joined; the next version begins another epoch."""
    pair, fleet, _ = publisher(log, events, nccl=True)
    fleet.joins = False
    assert pair.publish(1) == "its checksum"
    assert log == ["publish 1", "rendezvous of 3", "2 join", "call off 1", "copy 1", "engines load 1"]
    assert [kind for kind, _ in events] == ["broadcast_failed"]
    fleet.joins = True
    log.clear()
    assert pair.publish(2) is None
    assert log[:3] == ["publish 2", "rendezvous of 3", "2 join"]


def test_a_broadcast_that_stands_still_ends_and_all_get_bytes(log: list[str], events: Events) -> None:
    pair, _, learner = publisher(log, events, nccl=True)
    pair.publish(1)
    learner.sends = False
    log.clear()
    assert pair.publish(2) == "its checksum"
    assert log == ["publish 2", "engines receive 2", "broadcast 2 stuck", "copy 2", "engines load 2"]
    assert events == [
        ("broadcast_failed", {"version": 2, "why": "it was not done in 60 s, or an engine was lost in it"})
    ]
    learner.sends = True
    log.clear()
    pair.publish(3)
    assert "rendezvous of 3" in log, "the old group is gone"


def test_without_an_engine_that_answers_nothing_is_broadcast(log: list[str], events: Events) -> None:
    pair, fleet, _ = publisher(log, events, nccl=True)
    fleet.engines = []
    assert pair.publish(1) == "its checksum"
    assert log == ["publish 1", "copy 1", "engines load 1"]


def test_ranks_that_were_built_anew_begin_another_epoch(log: list[str], events: Events) -> None:
    pair, _, learner = publisher(log, events, nccl=True)
    pair.publish(1)
    log.clear()
    learner.builds = 2
    pair.publish(2)
    assert log[:3] == ["publish 2", "rendezvous of 3", "2 join"]
