"""Waiting on Ray without hanging: every wait has a name and a deadline, every shortage its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.errors import DeadlineError, PlacementError, RollcallError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

GRANT_S = 10.0  # granting free resources takes milliseconds; after this long somebody else holds them


def get(refs: Sequence[Any], *, what: str, timeout_s: float) -> list[Any]:
    """Return the values of object refs, in order; the first failure ends the wait for all.

    Raises DeadlineError naming `what`, a RollcallError of the remote side as it was raised there, or Ray's own error.
    """
    import ray

    try:
        return list(ray.get(list(refs), timeout=timeout_s))
    except ray.exceptions.GetTimeoutError as error:
        _, missing = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        raise DeadlineError(
            f"waited too long for {what}",
            got=f"{len(missing)} of {len(refs)} still missing after {timeout_s:g} s",
            remedy="look for its process in Ray's logs, or raise the timeout in its section of the configuration",
        ) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RollcallError):
            raise error.cause from error
        raise


def reserve(bundles: Sequence[Mapping[str, float]], *, strategy: str, what: str, timeout_s: float) -> PlacementGroup:
    """Return a placement group that holds all `bundles`; raise PlacementError with what is needed and what is there.

    Args:
        bundles: resources of each member, {"CPU": 1, "GPU": 1}; entries of 0 are left out.
        strategy: Ray's PACK, SPREAD, STRICT_PACK or STRICT_SPREAD.
        timeout_s: how long nodes may take to join; with 0 a cluster that is too small is refused at once.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    asked = [_without_zeros(bundle) for bundle in bundles]
    held: dict[str, float] = ray.cluster_resources()
    whole = f"{what}: {len(asked)} x {asked[0]}, placed {strategy}"
    too_small = any(amount > held.get(name, 0.0) for name, amount in _sum_resources(asked).items())
    if timeout_s == 0 and too_small:
        raise describe_shortage(whole, _sum_resources(asked))
    group: PlacementGroup = placement_group(asked, strategy=strategy)
    if not group.wait(max(timeout_s, GRANT_S)):
        shortage = describe_shortage(whole, _sum_resources(asked))
        remove_placement_group(group)
        raise shortage
    return group


def _without_zeros(bundle: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in bundle.items() if amount} or {"CPU": 0.001}  # Ray refuses an empty bundle


def _sum_resources(bundles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for bundle in bundles for name in bundle})
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in names}


def describe_shortage(what: str, needed: Mapping[str, float]) -> PlacementError:
    """Make the error of a cluster that cannot hold `what`, with every number of {"CPU": 20.5, "GPU": 0.0}."""
    import ray

    there: dict[str, float] = ray.cluster_resources()
    free: dict[str, float] = ray.available_resources()
    return PlacementError(
        f"the cluster cannot hold {what}",
        got="; ".join(
            f"{name}: {amount:g} needed, {free.get(name, 0.0):g} free of {there.get(name, 0.0):g}"
            for name, amount in needed.items()
        ),
        remedy="lower rollout.engines, learner.ranks or their cpus_per_… and gpus_per_… (fractions work), "
        "add nodes, or let cluster.wait_for_resources_s wait for them",
    )
