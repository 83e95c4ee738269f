"""An engine in this process, asked as the fleet asks one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.types import GenerationRequest
from rollout.engine import Outcomes, RolloutEngine


def generate(engine: RolloutEngine, requests: Sequence[GenerationRequest], version: int) -> Iterator[Outcomes]:
    """Yield groups as they finish, on a stream whose requests are all there from the beginning."""
    engine.submit(0, requests)
    engine.finish(0, len(requests))
    yield from engine.serve(version, 0)
