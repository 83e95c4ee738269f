"""Ray's own autoscaler, with nodes that are processes: they come for engines that are asked for, and go when idle."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import hosts, jobs
from tests.helpers.gated_reward import GATE, GATED
from tests.helpers.hosts import PRIVATE, Host

OBSTACLE = hosts.find_obstacle()
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(OBSTACLE is not None, reason=f"hosts cannot be played here: {OBSTACLE}"),
]
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # as Ray's fake provider names it
NOTHING_TO_RUN = (
    *("setup", "head_setup", "worker_setup", "initialization"),
    *("head_start_ray", "worker_start_ray"),
)
WORDS = ("evaluation.limit=8", "checkpoint.every=0")
# A node has room for one engine, the head for rank and reward worker: a node that holds any actor stays.
ENGINES = (
    *("rollout.engines=2", "rollout.cpus_per_engine=1", "reward.cpus_per_worker=0.4"),
    "cluster.wait_for_resources_s=300",
)


def write_config(path: Path, address: str) -> None:
    """Write what Ray's autoscaler reads: a head that stays, and up to four nodes that go after six idle seconds."""
    worker = {"resources": {"CPU": 1, "object_store_memory": 10**8}, "node_config": {}, "min_workers": 0}
    config = {
        "cluster_name": "fake",
        "max_workers": 4,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 4.0,
        "provider": {
            "type": "external",  # Ray's wheel lacks the file that its own name for it, fake_multinode, wants
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "disable_node_updaters": True,
            "head_node_id": HEAD_ID,
            "gcs_address": f"{address}:6379",
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "rollout": {**worker, "max_workers": 4},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in NOTHING_TO_RUN},
    }
    path.write_text(json.dumps(config))


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host of its own, with a head of Ray that has an autoscaler."""
    monkeypatch.setenv(GATE, str(tmp_path / "gate"))
    log = tmp_path / "head.log"
    with hosts.up("head") as up:
        head = up["head"]
        write_config(tmp_path / "autoscaler.json", head.address)
        words = f"ray start --head --port=6379 --temp-dir={PRIVATE}/ray --node-ip-address={head.address} --num-cpus=1"
        words += f" --autoscaling-config={tmp_path}/autoscaler.json --object-store-memory=200000000"
        own = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
        own |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
        head.start([*words.split(), "--disable-usage-stats", "--block"], log, own)
        jobs.wait_for("Ray", lambda: log.exists() and "Ray runtime started" in log.read_text(), head.init)
        yield head


def count_nodes(head: Host) -> int:
    """Count the live nodes beside the head."""
    address = f"--address={head.address}:6379"
    nodes = json.loads(head.run(["ray", "list", "nodes", address, "--format=json", "--filter=state=ALIVE"]))
    return len(nodes) - 1


def test_nodes_come_for_engines_and_go_with_them(head: Host, tmp_path: Path) -> None:
    """Two engines become four and then one; a pending place is all that the autoscaler is told (law 5)."""
    gate, run_dir, log = tmp_path / "gate", tmp_path / "run", tmp_path / "run.log"
    words = ["python", "-m", "learner.main", *jobs.SMALL, f"run_dir={run_dir}", *WORDS, *GATED, *ENGINES]
    run: subprocess.Popen[str] = head.start(words, log, {"RAY_ADDRESS": f"{head.address}:6379"})
    for until, count in ((2, 4), (5, 1)):
        jobs.wait_for(f"step {until}", lambda until=until: len(jobs.rows(run_dir, "metrics.jsonl")) >= until, run)  # type: ignore[misc]
        gate.touch()
        print(head.run(["python", "-m", "rollout.scale", str(run_dir), str(count)], timeout_s=400))
        jobs.wait_for(f"{count} nodes", lambda count=count: count_nodes(head) == count, run)  # type: ignore[misc]
        gate.unlink()
    assert jobs.finish(run, run_dir) == 0, log.read_text()
    events = jobs.rows(run_dir, "events.jsonl")
    assert [row["engines"] for row in events if row["kind"] == "engines_reached"] == [4, 1]
    assert not [row for row in events if row["kind"] == "engine_lost"]
    jobs.assert_same_weights(jobs.complete(tmp_path / "alone", *WORDS), run_dir)
