"""What nodes can hold is counted node by node, and the error says what each of them has."""

from __future__ import annotations

from typing import Any

import pytest

from common.capacity import PlaceRequest, could_hold, refuse_impossible
from common.errors import PlacementError


def node(address: str, cpus: float, **labels: str) -> dict[str, Any]:
    return {
        "Alive": True,
        "NodeID": address,
        "NodeManagerAddress": address,
        "Resources": {"CPU": cpus, "GPU": 0.0},
        "Labels": {"ray.io/node-id": address, **labels},
    }


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    nodes = [node("10.0.0.1", 0), node("10.0.0.2", 2, role="learner"), node("10.0.0.3", 2, role="rollout")]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr(
        "ray._private.state.available_resources_per_node", lambda: {"10.0.0.2": {"CPU": 2.0}, "10.0.0.3": {"CPU": 1.0}}
    )
    return nodes


@pytest.mark.parametrize(
    ("cpus", "parts", "labels", "fits"),
    [
        (2, 2, {}, True),
        (3, 1, {}, False),  # 4 CPUs in all, but on no node 3
        (1.5, 2, {}, True),
        (1.5, 3, {}, False),
        (2, 1, {"role": "learner"}, True),
        (1, 3, {"role": "learner"}, False),
        (1, 1, {"role": "reward"}, False),
        (1, 2, {"role": "!learner"}, True),  # Ray's operators are Ray's to judge
        (1, 2, {"role": "in(learner, reward)"}, True),
        (0, 50, {"role": "rollout"}, True),
    ],
)
@pytest.mark.usefixtures("nodes")
def test_bundles_are_counted_node_by_node(cpus: float, parts: int, labels: dict[str, str], fits: bool) -> None:
    assert could_hold(PlaceRequest(what="it", bundles=({"CPU": cpus, "GPU": 0.0},) * parts), labels) is fits


@pytest.mark.usefixtures("nodes")
def test_the_error_names_the_part_its_labels_and_every_node() -> None:
    request = PlaceRequest(
        what="an engine", bundles=({"CPU": 3, "GPU": 0},), labels=({"role": "rollout"}, {"spot": "no"})
    )
    with pytest.raises(PlacementError) as caught:
        refuse_impossible([request, request])
    assert (
        caught.value.what
        == "the cluster cannot hold 2 x an engine (3 CPU each on one node) with role=rollout or spot=no"
    )
    assert str(caught.value.got).split(". Nodes: ") == [
        "CPU: 6 needed, 3 free of 4",
        "10.0.0.1 0 CPU free of 0; 10.0.0.2 (role=learner) 2 CPU free of 2; 10.0.0.3 (role=rollout) 1 CPU free of 2",
    ]
