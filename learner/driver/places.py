"""The places of a run in the cluster: reserved all at once before anything starts, given back at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.config.schema import Config
from common.placement import GRANT_S, reserve
from learner.driver.preflight.capacity import list_rank_requests, list_reward_requests
from rollout.spec import make_engine_request

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """A placement group of all ranks, one of each engine, and one of each reward worker that reserves anything."""

    learner: PlacementGroup | None  # None: no ranks
    engines: tuple[PlacementGroup, ...]
    rewards: tuple[PlacementGroup, ...]


@contextmanager
def reserve_places(config: Config, *, grant_s: float = GRANT_S) -> Iterator[Places]:
    """Reserve a place for every part of a run, and give all of them back at the end.

    What waits for a place is what an autoscaler sees, so no other run's demand is touched.

    Args:
        grant_s: seconds that others may take to free what they hold.

    Raises:
        PlacementError: the cluster cannot hold the run, and no nodes joined in `cluster.wait_for_resources_s`.
    """
    from ray.util.placement_group import remove_placement_group

    ranks, engines = list_rank_requests(config), [make_engine_request(config)] * config.rollout.min_engines
    rewards = list_reward_requests(config)
    groups = reserve([*ranks, *engines, *rewards], wait_s=config.cluster.wait_for_resources_s, grant_s=grant_s)
    learner, others = groups[: len(ranks)], groups[len(ranks) :]
    try:
        yield Places(
            learner=learner[0] if learner else None,
            engines=tuple(others[: len(engines)]),
            rewards=tuple(others[len(engines) :]),
        )
    finally:
        for group in groups:
            remove_placement_group(group)
