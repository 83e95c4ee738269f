"""An actor on each node of ranks, which holds the copies of ranks on another node, in case that one is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.process import end_with_raylet


class Keeper:
    """Holds the newest copies it was given. Ray keeps an object on this node for as long as this process maps it."""

    def __init__(self) -> None:
        end_with_raylet()
        self._held: dict[int, Any] = {}  # by rank

    def hold(self, rank: int, copy: Any) -> None:
        """Hold a copy in place of the rank's last one."""
        self._held[rank] = copy

    def give(self, rank: int) -> tuple[None, Any]:
        """Return nothing, and the copy of a rank as a new object on this node."""
        return None, self._held[rank]


def start_keepers(nodes: Sequence[str]) -> list[Any]:
    """Start a keeper for each rank on the next node that holds ranks; none where all are on one node.

    Args:
        nodes: Ray's ids, one of each rank.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    distinct = list(dict.fromkeys(nodes))
    if len(distinct) == 1:
        return []
    actor: Any = ray.remote(num_cpus=0)(Keeper)
    on_node = {
        node: actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in distinct
    }
    return [on_node[distinct[(distinct.index(node) + 1) % len(distinct)]] for node in nodes]
