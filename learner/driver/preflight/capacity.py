"""Before all other steps: what the parts of a run reserve, held against this machine where the cluster is its own."""

from __future__ import annotations

import os
from collections.abc import Callable

from common.capacity import PlaceRequest, count_cpus, describe_machine, refuse_impossible
from common.config.schema import LOCAL_CLUSTER, Config
from common.errors import ConfigError, PlacementError
from rollout.spec import make_engine_request

MOST_WORKERS_A_CPU = 8
OVERRIDES = ("RAY_OVERRIDE_RESOURCES", "RAY_OVERRIDE_LABELS")  # with one of these Ray says what a machine has


def check_capacity(config: Config, *, say: Callable[[str], None] | None = None) -> None:
    """Refuse a run that a cluster of this machine alone cannot hold. Another cluster says so itself, once it is asked.

    Args:
        say: takes a warning in place of the error where this machine has no GPU for a run on GPUs, for a dry run.

    Raises:
        PlacementError: naming what is missing.
    """
    if config.cluster.resolve_address() != LOCAL_CLUSTER or any(name in os.environ for name in OVERRIDES):
        return
    machine = describe_machine(gpus=count_gpus() if config.cluster.device == "cuda" else 0)
    elsewhere = config.cluster.device == "cuda" and not machine.total["GPU"]
    try:
        refuse_impossible([_without_rays_labels(request) for request in list_requests(config)], [machine])
    except PlacementError as error:
        if say is None or not elsewhere:
            raise
        say(f"warning: {error.what}: {error.got}")


def check_machine(config: Config, *, say: Callable[[str], None]) -> None:
    """Refuse KV caches beyond the memory of this machine, and warn of more processes than its cores can serve.

    Another cluster, or a machine without the GPUs of the run, is not this one. Raises ConfigError.
    """
    gpus = config.cluster.device == "cuda"
    if config.cluster.resolve_address() != LOCAL_CLUSTER or (gpus and not count_gpus()):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    engines, each = config.rollout.max_engines, config.rollout.kv_cache_mb or 0
    if not gpus and engines * each > memory:
        raise ConfigError(
            "the KV caches of the engines are larger than the memory of this machine",
            got=f"{engines} x rollout.kv_cache_mb = {each}, of {memory} MB",
            remedy="lower rollout.kv_cache_mb",
        )
    _warn_of_room(config, say=say)
    cpus, threads, workers = count_cpus(), config.cluster.threads, config.reward.workers
    if threads > cpus:
        say(f"warning: cluster.threads = {threads} on {cpus} CPUs: processes whose threads share cores are slower")
    if workers > MOST_WORKERS_A_CPU * cpus:
        say(f"warning: reward.workers = {workers} on {cpus} CPUs: each is a process that takes memory and a start")


def _warn_of_room(config: Config, *, say: Callable[[str], None]) -> None:
    """Warn of more engines than this machine can ever hold beside the rest of the run."""
    rollout = config.rollout
    machine = describe_machine(gpus=count_gpus() if config.cluster.device == "cuda" else 0)
    more = [make_engine_request(config)] * (rollout.max_engines - rollout.min_engines)
    if more and not any(name in os.environ for name in OVERRIDES):
        try:
            refuse_impossible([_without_rays_labels(request) for request in [*list_requests(config), *more]], [machine])
        except PlacementError as error:
            say(f"warning: rollout.engines never reach max = {rollout.max_engines} on this machine: {error.got}")


def count_gpus() -> int:
    """Count the GPUs that this process sees."""
    import torch

    return torch.cuda.device_count()


def _without_rays_labels(request: PlaceRequest) -> PlaceRequest:
    """Return the request without the labels that Ray itself gives a node."""
    labels = tuple(
        {name: value for name, value in choice.items() if not name.startswith("ray.io/")} for choice in request.labels
    )
    return PlaceRequest(what=request.what, bundles=request.bundles, labels=labels)


def list_requests(config: Config) -> list[PlaceRequest]:
    """List the requests of all parts of a run: ranks, engines, reward workers."""
    engines = [make_engine_request(config)] * config.rollout.min_engines
    return [*list_rank_requests(config), *engines, *list_reward_requests(config)]


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
    bundles = [bundle for request in list_requests(config) for bundle in request.bundles]
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
