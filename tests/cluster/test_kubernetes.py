"""`deploy/kubernetes/overlays/kind-cpu` without Kubernetes: its entrypoint and its pods' last words on hosts."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import DASHBOARD, Cluster, start_cluster
from tests.helpers import hosts, jobs
from tests.helpers.kuberay import groups
from tests.helpers.kubernetes.reading import IMAGE_ROOT
from tests.helpers.kubernetes.render import Document, find, render

OBSTACLE = hosts.find_obstacle()
pytestmark = [
    pytest.mark.engine,
    pytest.mark.alone,
    pytest.mark.skipif(OBSTACLE is not None, reason=f"hosts cannot be played here: {OBSTACLE}"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Head, learner and rollout as hosts of their own."""
    logs = tmp_path_factory.mktemp("cluster") / "logs"
    with start_cluster(logs, ("head", "learner-0", "rollout-0")) as cluster:
        yield cluster


@pytest.fixture
def job() -> Document:
    return find(render("overlays/kind-cpu"), "RayJob")


def test_its_run_goes_through_while_its_rollout_pod_is_told_to_end(
    cluster: Cluster, job: Document, tmp_path: Path
) -> None:
    """Hosts have the labels of the groups; the volume is a folder that all of them see."""
    assert {name: group["labels"] for name, group in groups(job) if name != "head"} == {
        "learner": {"role": "learner"},
        "rollout": {"role": "rollout"},
    }, "as the hosts are labelled"
    words = job["spec"]["entrypoint"].replace(f"{IMAGE_ROOT}/", "").replace("/shared", str(tmp_path))
    submit = ["ray", "job", "submit", f"--address=http://{cluster.head.address}:{DASHBOARD}", "--working-dir", "."]
    short = ["steps=8", "learner.warmup_steps=2", "evaluation.limit=8"]
    running = cluster.head.start([*submit, "--", *shlex.split(words), *short], cluster.console)
    run_dir = tmp_path / "runs/digits"
    cluster.wait_for_step(run_dir, 1, running)

    told = dict(groups(job))["rollout"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    begun = time.monotonic()
    ending = cluster.hosts["rollout-0"].start(told, cluster.logs / "told.log")
    console = cluster.finish(running)
    assert "finished after 8 of 8 steps" in console, console
    gone = time.monotonic() - begun  # the engines with it
    assert ending.wait(120) == 0, (cluster.logs / "told.log").read_text()
    assert gone > 50 or time.monotonic() - begun < 100, "it waits for the engines, and no longer"
    events = jobs.rows(run_dir, "events.jsonl")
    (draining,) = [event for event in events if event["kind"] == "node_draining"]
    assert draining["engines"], json.dumps(events)
    assert jobs.rows(run_dir, "metrics.jsonl")[-1]["step"] == 7
