"""Asking Ray's autoscaler for the nodes of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.config.schema import Config


def bundles(config: Config) -> list[dict[str, float]]:
    """What each actor of a run reserves, one entry an actor; actors that reserve nothing are left out."""
    learner, rollout, reward = config.learner, config.rollout, config.reward
    actors = [
        *[{"CPU": learner.cpus_per_rank, "GPU": learner.gpus_per_rank}] * learner.ranks,
        *[{"CPU": rollout.cpus_per_engine, "GPU": rollout.gpus_per_engine}] * rollout.engines,
        *[{"CPU": reward.cpus_per_worker}] * reward.workers,
    ]
    reserved = ({name: amount for name, amount in actor.items() if amount} for actor in actors)
    return [actor for actor in reserved if actor]


@contextmanager
def request_nodes(config: Config) -> Iterator[None]:
    """While inside, the autoscaler of the cluster (if it has one) works towards nodes that hold the whole run.

    Waiting alone makes no node join: nothing is pending before actors are. The request ends with the block, since
    actors then hold their nodes themselves and a standing one would keep them after the run.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles(config))
    try:
        yield
    finally:
        request_resources(bundles=[])
