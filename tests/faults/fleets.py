"""What tests of faults share: events as a list, fleets that serve, answers that are checked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from common.types import FailedGroup, GenerationRequest, Group
from rollout.fleet.fleet import RolloutFleet
from tests.helpers.modelled import Model, draw, make_manifest

NOTICE_S = 1.0  # within which a death is noticed
WITHIN_S = 30.0  # of which an exhausted ring ends the run
RETURN_S = 5.0  # beyond its start-up, within which an engine serves again


class Events(list[tuple[str, dict[str, Any]]]):
    """Every event of a fleet, in order."""

    def __call__(self, kind: str, **fields: Any) -> None:
        self.append((kind, fields))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for found, fields in self if found == kind]

    def wait(self, kind: str, count: int = 1, *, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Return the events of a kind, once there are so many."""
        began = time.monotonic()
        while len(found := self.of(kind)) < count:
            assert time.monotonic() - began < timeout_s, f"{len(found)} of {count} {kind} in {timeout_s:g} s"
            time.sleep(0.005)
        return found


def serve(start: Callable[..., RolloutFleet], engines: int, model: Model, **rollout: Any) -> RolloutFleet:
    """Start a fleet and wait until it serves version 0."""
    fleet = start(engines, model, **rollout)
    fleet.ready()
    fleet.publish(make_manifest(0))
    return fleet


def check(requests: Sequence[GenerationRequest], found: Sequence[Group | FailedGroup], version: int) -> None:
    """Each request is answered once, by the tokens that its seed and the version say."""
    assert Counter(one.prompt_id for one in found) == Counter(one.prompt_id for one in requests)
    by_id = {one.prompt_id: one for one in found}
    for request in requests:
        group = by_id[request.prompt_id]
        if isinstance(group, Group):
            assert group.completions == draw(request, version).completions
            assert group.weights_version == version


def pids(fleet: RolloutFleet) -> list[int]:
    """The processes of the engines that serve."""
    return [member.info.pid for member in fleet._board.serving() if member.info]  # noqa: SLF001


def find_pid(fleet: RolloutFleet, answer: Group | FailedGroup) -> int:
    """The process of the engine that gave an answer."""
    assert isinstance(answer, Group)
    (member,) = [one for one in fleet._board.serving() if one.id == answer.engine_id]  # noqa: SLF001
    assert member.info is not None
    return member.info.pid
