"""Runs over several hosts, each with its own network, processes, cache and disk: bit-equal to one host, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.cluster.conftest import RECIPE, Cluster
from tests.helpers import hosts, jobs
from tests.helpers.gated_reward import GATE, GATED
from tests.helpers.hosts import PRIVATE

OBSTACLE = hosts.find_obstacle()
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(OBSTACLE is not None, reason=f"hosts cannot be played here: {OBSTACLE}"),
]
LABELS = ("learner.labels=role=learner", "rollout.labels=role=rollout")
EITHER = ("learner.labels=role=learner", "rollout.labels=[{role: rollout}, {role: learner}]")


def assert_same_run(found: Path, wanted: Path) -> None:
    """Law 5: the same weights to the last bit, and every step once."""
    ours, theirs = jobs.weights(found), jobs.weights(wanted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [row["step"] for row in jobs.rows(found, "metrics.jsonl")] == list(range(30))


def list_actor_hosts(cluster: Cluster) -> dict[str, list[str]]:
    """Return the hosts of all actors there ever were, by class, as Ray's own command tells it."""
    address = f"--address={cluster.head.address}:6379"
    nodes = json.loads(cluster.head.run(["ray", "list", "nodes", address, "--format=json", "--detail"]))
    actors = json.loads(cluster.head.run(["ray", "list", "actors", address, "--format=json", "--detail"]))
    names = {node["node_id"]: node["node_name"] for node in nodes}
    by_address = {host.address: host.name for host in cluster.hosts.values()}
    found: dict[str, list[str]] = {}
    for actor in actors:
        found.setdefault(actor["class_name"], []).append(by_address[names[actor["node_id"]]])
    return {name: sorted(places) for name, places in found.items()}


def test_ranks_on_two_hosts_and_engines_on_a_third_are_the_run_of_one_host(
    cluster: Cluster, one_host: Path, tmp_path: Path
) -> None:
    """Law 5, under `ray job submit` with a token, where no host but the driver's has the model, and every host's name
    is a loopback address."""
    job = cluster.submit(f"run_dir={tmp_path / 'run'}", *LABELS)
    cluster.wait_for_step(tmp_path / "run", 1, job)
    listening = cluster.hosts["learner-0"].run(["ss", "-Hltnp"])
    console = cluster.finish(job)
    assert "finished after 30 of 30 steps" in console, console
    assert_same_run(tmp_path / "run", one_host)
    placed = list_actor_hosts(cluster)
    assert placed["LearnerRank"] == ["learner-0", "learner-1"]
    assert placed["RolloutEngine"] == ["rollout-0"] * 2

    # Ray's own ports take a token. What a rank opens besides is at the host's address, where the other ranks are.
    ranks = [line.split()[3] for line in listening.splitlines() if "ray::LearnerR" in line]
    own = [address for address in ranks if address.startswith(cluster.hosts["learner-0"].address)]
    assert own
    assert all(re.match(r"127\.0\.0\.1|\[::1\]|\*:", address) for address in set(ranks) - set(own))
    assert len([address for address in ranks if address.startswith("*")]) <= 1, "the worker's own, which is Ray's"


def test_ten_starts_of_ten_put_every_part_on_a_node_with_its_label(cluster: Cluster) -> None:
    words = ["python", "-m", "tests.helpers.ten_starts", *RECIPE, *LABELS]
    environment = {"RAY_ADDRESS": f"{cluster.head.address}:6379"}
    log = cluster.logs / "starts.log"
    cluster.head.start(words, log, environment).wait(240)
    starts = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert len(starts) == 10, log.read_text()
    for start in starts:
        assert sorted(start["learner"]) == ["learner-0", "learner-1"]
        assert start["engines"] == ["rollout-0"] * 2


REFUSED = {
    "private run folder": (
        [f"run_dir={PRIVATE}/run", *LABELS],
        r"not on a disk that all hosts .*learner-[01] \(10\.77",
    ),
    "labels of no node": (["learner.labels=role=other"], r"2 ranks .* with role=other.*\(role=rollout\) 1 CPU"),
    "no node is large enough": (
        ["learner.cpus_per_rank=1.2", "rollout.engines=1"],
        r"2 ranks \(1\.2 CPU each on one node\)",
    ),
    "torch without CUDA": (
        ["cluster.device=cuda", "learner.gpus_per_rank=1", "rollout.engines=1", "rollout.gpus_per_engine=1"],
        r"cluster\.device",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hosts_cannot_do_is_refused_before_anything_loads(cluster: Cluster, case: str, tmp_path: Path) -> None:
    words, said = REFUSED[case]
    assert_refused(cluster, [f"run_dir={tmp_path / 'run'}", *words], said)


def test_hosts_without_a_route_between_them_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    """Both reach the head, so to Ray the cluster is whole."""
    with cut_route(cluster, "rollout-0", "learner-1"):
        words = [f"run_dir={tmp_path / 'run'}", *LABELS]
        assert_refused(cluster, words, r"cannot reach each other.*rollout-0 .*no answer from learner-1")


def assert_refused(cluster: Cluster, words: list[str], said: str) -> None:
    """One error of three lines, within seconds of the cluster's answer, and nothing stays reserved."""
    console = cluster.finish(cluster.submit(*words))
    (error,) = {*re.findall(r"^error: .*\n  got:    .*\n  remedy: .*$", console, re.MULTILINE)}  # Ray shows it twice
    assert re.search(said, error, re.DOTALL), console
    assert "Traceback" not in console
    assert "rank(s) up" not in console


@contextmanager
def cut_route(cluster: Cluster, one: str, other: str) -> Iterator[None]:
    there = f"{cluster.hosts[other].address}/32"
    cluster.hosts[one].run(["ip", "route", "add", "blackhole", there])
    yield
    cluster.hosts[one].run(["ip", "route", "delete", "blackhole", there])


def test_engines_come_and_go_and_a_host_of_theirs_is_lost(cluster: Cluster, one_host: Path, tmp_path: Path) -> None:
    """Law 5: two engines become four, their host is cut off, one is left. The last test of this cluster.

    The run folder is seen from another host; while the number changes the run stands still in the middle of a step.
    """
    gate, run_dir = tmp_path / "gate", tmp_path / "run"
    job = cluster.submit(f"run_dir={run_dir}", *EITHER, *GATED, environment={GATE: str(gate)})
    scale = ["python", "-m", "rollout.scale", str(run_dir)]
    cluster.wait_for_step(run_dir, 3, job)
    gate.touch()
    cluster.hosts["learner-1"].run([*scale, "4"], timeout_s=400)
    gate.unlink()
    cluster.wait_for_step(run_dir, 6, job)
    cluster.hosts["rollout-0"].cut_power()
    cluster.wait_for_step(run_dir, 9, job)
    gate.touch()
    cluster.hosts["learner-0"].run([*scale, "1"], timeout_s=400)
    gate.unlink()
    console = cluster.finish(job)
    assert "finished after 30 of 30 steps" in console, console
    kinds = [row["kind"] for row in jobs.rows(run_dir, "events.jsonl")]
    assert kinds.count("engines_reached") == 2
    assert "engine_lost" in kinds
    assert_same_run(run_dir, one_host)
