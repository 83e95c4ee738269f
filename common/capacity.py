"""What the nodes of a Ray cluster can hold, and the error that says what is missing where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import PlacementError

SHOWN_NODES = 8  # in an error

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


def refuse_impossible(requests: Sequence[PlaceRequest]) -> None:
    """Raise PlacementError where the nodes, all free, could not hold one of the requests, or not all of them."""
    if missing := [
        request for request in requests if not any(could_hold(request, labels) for labels in request.choices)
    ]:
        raise describe_shortage(missing)
    there = _add_up([node["Resources"] for node in _alive_nodes()])
    if any(amount > there.get(name, 0.0) for name, amount in _needed(requests).items()):
        raise describe_shortage(requests)


def could_hold(request: PlaceRequest, labels: Labels) -> bool:
    """Return whether nodes with these labels could hold all bundles if nobody else used them."""
    room = [dict(node["Resources"]) for node in _alive_nodes() if _has_labels(node, labels)]
    for bundle in map(without_zeros, request.bundles):
        for free in room:
            if all(amount <= free.get(name, 0.0) for name, amount in bundle.items()):
                for name, amount in bundle.items():
                    free[name] -= amount
                break
        else:
            return False
    return True


def _has_labels(node: Mapping[str, Any], labels: Labels) -> bool:
    """Return False where the node has another value. Ray's operators (!spot, in(a, b)) are left to Ray."""
    plain = {name: value for name, value in labels.items() if not set(value) & set("!()")}
    return all(node["Labels"].get(name) == value for name, value in plain.items())


def _alive_nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _add_up(bundles: Sequence[Resources]) -> dict[str, float]:
    names = sorted({name for bundle in bundles for name in bundle})
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in names}


def _needed(requests: Sequence[PlaceRequest]) -> dict[str, float]:
    bundles = [without_zeros(bundle) for request in requests for bundle in request.bundles]
    return _add_up([bundle for bundle in bundles if bundle != without_zeros({})])


def describe_shortage(requests: Sequence[PlaceRequest]) -> PlacementError:
    """Make the error of a cluster that cannot hold the requests: what they need together, and what each node has."""
    import ray

    there, free = _add_up([node["Resources"] for node in _alive_nodes()]), ray.available_resources()
    needed = "; ".join(
        f"{name}: {amount:g} needed, {free.get(name, 0.0):g} free of {there.get(name, 0.0):g}"
        for name, amount in _needed(requests).items()
    )
    return PlacementError(
        f"the cluster cannot hold {_name_requests(requests)}",
        got=f"{needed}. Nodes: {_describe_nodes()}",
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


def _describe_nodes() -> str:
    """Return "10.0.0.2 (role=learner) 3 CPU free of 4, …" for the first nodes."""
    from ray._private.state import available_resources_per_node

    nodes, free = _alive_nodes(), available_resources_per_node()
    lines = []
    for node in nodes[:SHOWN_NODES]:
        own = {name: value for name, value in node["Labels"].items() if not name.startswith("ray.io/node-id")}
        has = ", ".join(
            f"{free.get(node['NodeID'], {}).get(name, 0.0):g} {name} free of {node['Resources'].get(name, 0.0):g}"
            for name in ("CPU", "GPU")
            if name == "CPU" or node["Resources"].get(name)
        )
        lines.append(f"{node['NodeManagerAddress']}{f' ({_show(own)})' if own else ''} {has}")
    more = f" and {len(nodes) - SHOWN_NODES} more" if len(nodes) > SHOWN_NODES else ""
    return "; ".join(lines) + more


def _show(labels: Labels) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())
