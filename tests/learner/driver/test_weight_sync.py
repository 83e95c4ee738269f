"""Who is told what, in which order; the transfers themselves are in test_weights.py and test_engine.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from learner.driver.weight_sync import WeightSync


class Manifest(str):
    """The name of one."""

    __slots__ = ()
    checksum = "its checksum"


class Learner:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def publish(self, version: int) -> Manifest:
        self.log.append(f"publish {version}")
        return Manifest(f"manifest {version}")

    def copy(self, version: int) -> str:
        return f"copy {version}"

    def nccl_rendezvous(self, world_size: int) -> dict[str, int]:
        self.log.append(f"rendezvous of {world_size}")
        return {"rank_offset": 1}

    def broadcast(self, version: int) -> None:
        self.log.append(f"broadcast {version}")


class Fleet:
    def __init__(self, log: list[str]) -> None:
        self.log, self.engines = log, ["engine-0", "engine-1"]
        self.copy_of_weights: Callable[[], Any] | None = None

    def join(self, info: dict[str, int], engines: Sequence[str]) -> None:
        self.log.append(f"{len(engines)} join")

    def publish(self, manifest: str, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.log.append(f"engines receive {manifest}")
        meanwhile()


@pytest.fixture
def log() -> list[str]:
    return []


def publisher(log: list[str], *, nccl: bool) -> tuple[WeightSync, Fleet]:
    fleet: Any = Fleet(log)
    learner: Any = Learner(log)
    return WeightSync(learner, fleet, nccl=nccl), fleet


def test_the_object_store_needs_a_manifest_alone(log: list[str]) -> None:
    pair, _ = publisher(log, nccl=False)
    assert pair.publish(1) == "its checksum"
    assert log == ["publish 1", "engines receive manifest 1"]


def test_nccl_joins_once_and_broadcasts_while_the_engines_receive(log: list[str]) -> None:
    pair, _ = publisher(log, nccl=True)
    pair.publish(1)
    pair.publish(2)
    first = ["publish 1", "rendezvous of 3", "2 join", "engines receive manifest 1", "broadcast 1"]
    assert log == [*first, "publish 2", "engines receive manifest 2", "broadcast 2"]


def test_another_set_of_engines_is_another_group_and_late_ones_get_a_copy(log: list[str]) -> None:
    pair, fleet = publisher(log, nccl=True)
    pair.publish(1)
    assert fleet.copy_of_weights is not None
    assert fleet.copy_of_weights() == "copy 1"
    fleet.engines = ["engine-0", "engine-2"]
    log.clear()
    pair.publish(2)
    assert log[:3] == ["publish 2", "rendezvous of 3", "2 join"]
    assert fleet.copy_of_weights() == "copy 2"
