"""Asking Ray's autoscaler for the nodes of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.config.schema import Config


def list_bundles(config: Config) -> list[dict[str, float]]:
    """List what each actor of a run reserves: {"CPU": 0.5} for every rank, engine and reward worker that reserves
    anything."""
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
    """Ask the autoscaler, if the cluster has one, for nodes that hold the whole run, as long as the block lasts.

    Without a request no node joins: before actors start nothing is pending. After the block actors hold their nodes
    themselves, and a request that still stood would keep those nodes after the run.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=list_bundles(config))
    try:
        yield
    finally:
        request_resources(bundles=[])
