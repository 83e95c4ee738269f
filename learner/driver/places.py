"""The places of a run in the cluster: reserved all at once before anything starts, given back at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.capacity import PlaceRequest
from common.config.schema import Config
from common.placement import GRANT_S, reserve
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

    ranks, engines = list_rank_requests(config), [make_engine_request(config)] * config.rollout.engines
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


def list_rank_requests(config: Config) -> list[PlaceRequest]:
    """List the one request of all ranks, whose place is taken or refused as a whole; none without ranks."""
    learner = config.learner
    if not learner.ranks:
        return []
    rank = {"CPU": learner.cpus_per_rank, "GPU": learner.gpus_per_rank}
    what = "the learner's rank" if learner.ranks == 1 else f"the learner's {learner.ranks} ranks"
    return [PlaceRequest(what=what, bundles=(rank,) * learner.ranks, labels=tuple(learner.labels))]


def list_reward_requests(config: Config) -> list[PlaceRequest]:
    """List the requests of the reward workers; none where they reserve nothing."""
    reward = config.reward
    request = PlaceRequest(what="a reward worker", bundles=({"CPU": reward.cpus_per_worker},))
    return [request] * reward.workers if reward.cpus_per_worker else []


def count_resources(config: Config) -> dict[str, float]:
    """Add up the logical CPUs and GPUs that all parts of a run reserve: {"CPU": 2.5, "GPU": 0.0}."""
    engines = [make_engine_request(config)] * config.rollout.engines
    requests = [*list_rank_requests(config), *engines, *list_reward_requests(config)]
    bundles = [bundle for request in requests for bundle in request.bundles]
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
