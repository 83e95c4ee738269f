"""What the nodes of a Ray cluster can hold, and the error that says what is missing where."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import PlacementError

SHOWN_NODES = 8  # in an error
CGROUPS = Path("/sys/fs/cgroup")  # Linux's: what a container may use

Resources = Mapping[str, float]  # {"CPU": 1, "GPU": 1}
Labels = Mapping[str, str]  # {"role": "learner"}: what a node was started with


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceRequest:
    """What one part of a run asks for: bundles that are reserved together or not at all."""

    what: str  # for errors: "an engine"
    bundles: tuple[Resources, ...]
    labels: tuple[Labels, ...] = ()  # of the nodes, in order of preference; (): any node

    @property
    def choices(self) -> tuple[Labels, ...]:
        """The labels to try, in order; one choice of none where any node will do."""
        return self.labels or ({},)


def without_zeros(bundle: Resources) -> dict[str, float]:
    return {name: amount for name, amount in bundle.items() if amount} or {"CPU": 0.001}  # Ray refuses an empty bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of a cluster, as far as places are concerned."""

    name: str
    labels: Labels
    total: Resources
    free: Resources  # of `total`, what nobody has reserved


def read_nodes() -> list[Node]:
    """Read the nodes of the cluster that this process has joined."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [
        Node(
            name=node["NodeManagerAddress"],
            labels=node["Labels"],
            total=node["Resources"],
            free=free.get(node["NodeID"], {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def describe_machine(*, gpus: int) -> Node:
    """Describe this machine as the one node of a cluster that Ray starts here, without importing Ray."""
    resources = {"CPU": float(count_cpus()), "GPU": float(gpus)}
    return Node(name=os.uname().nodename, labels={}, total=resources, free=resources)


def count_cpus(cgroups: Path = CGROUPS) -> int:
    """Count the CPUs that Ray finds on this machine: those of its container, where that may use fewer."""
    count = os.cpu_count() or 1
    limits = [limit for limit in (_read_quota(cgroups), _read_cpu_set(cgroups)) if limit]
    return int(min(limits)) if limits else count


def _read_quota(cgroups: Path) -> float | None:
    """Read how many CPUs' time a container may take, by cgroups of version 1 or 2; None where nothing limits it."""
    first = cgroups / "cpu"
    with suppress(OSError, ValueError):
        if (first / "cpu.cfs_quota_us").exists():
            quota, period = ((first / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        else:
            quota, period = (cgroups / "cpu.max").read_text().split()  # "150000 100000", or "max 100000"
        return float(quota) / float(period) if float(quota) > 0 else None
    return None


def _read_cpu_set(cgroups: Path) -> int | None:
    """Count the CPUs that a container is bound to ("0-3,8" are five); None where nothing binds it."""
    with suppress(OSError, ValueError):
        ranges = [part.partition("-") for part in (cgroups / "cpuset/cpuset.cpus").read_text().split(",")]
        return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
    return None


def refuse_impossible(requests: Sequence[PlaceRequest], nodes: Sequence[Node]) -> None:
    """Raise PlacementError where the nodes, all free, could not hold one of the requests, or not all of them."""
    if missing := [
        request for request in requests if not any(could_hold(request, labels, nodes) for labels in request.choices)
    ]:
        raise describe_shortage(missing, nodes)
    there = _add_up([node.total for node in nodes])
    if any(amount > there.get(name, 0.0) for name, amount in _needed(requests).items()):
        raise describe_shortage(requests, nodes)


def could_hold(request: PlaceRequest, labels: Labels, nodes: Sequence[Node]) -> bool:
    """Return whether nodes with these labels could hold all bundles if nobody else used them."""
    room = [dict(node.total) for node in nodes if _has_labels(node, labels)]
    for bundle in map(without_zeros, request.bundles):
        for free in room:
            if all(amount <= free.get(name, 0.0) for name, amount in bundle.items()):
                for name, amount in bundle.items():
                    free[name] -= amount
                break
        else:
            return False
    return True


def _has_labels(node: Node, labels: Labels) -> bool:
    """Return False where the node has another value. Ray's operators (!spot, in(a, b)) are left to Ray."""
    plain = {name: value for name, value in labels.items() if not set(value) & set("!()")}
    return all(node.labels.get(name) == value for name, value in plain.items())


def _add_up(bundles: Sequence[Resources]) -> dict[str, float]:
    names = sorted({name for bundle in bundles for name in bundle})
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in names}


def _needed(requests: Sequence[PlaceRequest]) -> dict[str, float]:
    bundles = [without_zeros(bundle) for request in requests for bundle in request.bundles]
    return _add_up([bundle for bundle in bundles if bundle != without_zeros({})])


def describe_shortage(requests: Sequence[PlaceRequest], nodes: Sequence[Node]) -> PlacementError:
    """Make the error of a cluster that cannot hold the requests: what they need together, and what each node has."""
    there, free = _add_up([node.total for node in nodes]), _add_up([node.free for node in nodes])
    needed = "; ".join(
        f"{name}: {amount:g} needed, {free.get(name, 0.0):g} free of {there.get(name, 0.0):g}"
        for name, amount in _needed(requests).items()
    )
    return PlacementError(
        f"the cluster cannot hold {_name_requests(requests)}",
        got=f"{needed}. Nodes: {_describe_nodes(nodes)}",
        remedy="lower rollout.engines, learner.ranks or their cpus_per_… and gpus_per_… (fractions work), "
        "change their labels, add nodes, or let cluster.wait_for_resources_s wait for them",
    )


def _name_requests(requests: Sequence[PlaceRequest]) -> str:
    """Return "2 x an engine (1 CPU, 1 GPU each on one node) on nodes with role=rollout, the learner's rank (…)"."""
    names: dict[str, int] = {}
    for request in requests:
        where = " or ".join(_show(labels) for labels in request.labels if labels)
        each = ", ".join(f"{amount:g} {name}" for name, amount in without_zeros(request.bundles[0]).items())
        name = f"{request.what} ({each} each on one node){f' with {where}' if where else ''}"
        names[name] = names.get(name, 0) + 1
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items())


def _describe_nodes(nodes: Sequence[Node]) -> str:
    """Return "10.0.0.2 (role=learner) 3 CPU free of 4, …" for the first nodes."""
    lines = []
    for node in nodes[:SHOWN_NODES]:
        own = {name: value for name, value in node.labels.items() if not name.startswith("ray.io/node-id")}
        has = ", ".join(
            f"{node.free.get(name, 0.0):g} {name} free of {node.total.get(name, 0.0):g}"
            for name in ("CPU", "GPU")
            if name == "CPU" or node.total.get(name)
        )
        lines.append(f"{node.name}{f' ({_show(own)})' if own else ''} {has}")
    more = f" and {len(nodes) - SHOWN_NODES} more" if len(nodes) > SHOWN_NODES else ""
    return "; ".join(lines) + more


def _show(labels: Labels) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())
