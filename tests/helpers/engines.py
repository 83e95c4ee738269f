"""An engine in this process, asked as the fleet asks one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.types import FailedGroup, GenerationRequest, Group
from rollout.engine import RolloutEngine


def generate(
    engine: RolloutEngine, requests: Sequence[GenerationRequest], version: int
) -> Iterator[tuple[Group | FailedGroup, ...]]:
    """Yield groups as they finish, on a stream whose requests are all there from the beginning."""
    engine.submit(0, requests)
    engine.finish(0, len(requests))
    for outcomes in engine.serve(version, 0):
        yield tuple(one for one in outcomes if isinstance(one, Group | FailedGroup))
