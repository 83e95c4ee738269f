"""What nodes can hold is counted node by node, and the error says what each of them has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.capacity import Node, PlaceRequest, could_hold, count_cpus, refuse_impossible
from common.errors import PlacementError


def node(name: str, cpus: float, free: float | None = None, **labels: str) -> Node:
    total, left = {"CPU": cpus, "GPU": 0.0}, {"CPU": cpus if free is None else free}
    return Node(name=name, labels={"ray.io/node-id": name, **labels}, total=total, free=left)


NODES = [
    node("10.0.0.1", 0),
    node("10.0.0.2", 2, role="learner"),
    node("10.0.0.3", 2, free=1, role="rollout"),
]


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
def test_bundles_are_counted_node_by_node(cpus: float, parts: int, labels: dict[str, str], fits: bool) -> None:
    assert could_hold(PlaceRequest(what="it", bundles=({"CPU": cpus, "GPU": 0.0},) * parts), labels, NODES) is fits


def test_the_error_names_the_part_its_labels_and_every_node() -> None:
    request = PlaceRequest(
        what="an engine", bundles=({"CPU": 3, "GPU": 0},), labels=({"role": "rollout"}, {"spot": "no"})
    )
    with pytest.raises(PlacementError) as caught:
        refuse_impossible([request, request], NODES)
    assert (
        caught.value.what
        == "the cluster cannot hold 2 x an engine (3 CPU each on one node) with role=rollout or spot=no"
    )
    assert str(caught.value.got).split(". Nodes: ") == [
        "CPU: 6 needed, 3 free of 4",
        "10.0.0.1 0 CPU free of 0; 10.0.0.2 (role=learner) 2 CPU free of 2; 10.0.0.3 (role=rollout) 1 CPU free of 2",
    ]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max 100000"},
        {"cpu.max": "150000 100000"},
        {"cpu.max": "50000 100000"},
        {"cpu.max": "800000 100000", "cpuset/cpuset.cpus": "0-2,8"},
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000", "cpu.max": "100000 100000"},
        {"cpuset/cpuset.cpus": "0-5\n"},
        {"cpuset/cpuset.cpus": "3"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ray leaves its file open
def test_cpus_are_counted_as_ray_counts_them(files: dict[str, str], tmp_path: Path) -> None:
    from ray._private import utils

    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    names = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us", "cpuset/cpuset.cpus", "cpu.max")
    docker = utils._get_docker_cpus(*(str(tmp_path / name) for name in names))  # noqa: SLF001
    assert count_cpus(tmp_path) == int(docker if docker is not None else os.cpu_count() or 1)


def test_this_machine_has_as_many_cpus_for_us_as_for_ray() -> None:
    from ray._private.utils import get_num_cpus

    assert count_cpus() == get_num_cpus(override_docker_cpu_warning=True)
