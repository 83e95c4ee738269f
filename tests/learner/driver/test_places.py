"""The places of a run: what is asked of Ray, and what an autoscaler sees of it, read back from a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.config.cli import parse
from common.config.schema import Config
from learner.driver.preflight.capacity import count_resources, list_rank_requests, list_reward_requests
from rollout.spec import make_engine_request

ROOT = Path(__file__).parents[3]


def test_ranks_are_placed_together_engines_one_by_one_and_reward_workers_only_where_they_reserve() -> None:
    config = Config.model_validate(
        {
            "rollout": {"engines": 2, "labels": {"role": "rollout"}},
            "learner": {"ranks": 2, "labels": [{"role": "learner"}, {"role": "rollout"}]},
            "reward": {"workers": 3, "cpus_per_worker": 0.5},
        }
    )
    (ranks,) = list_rank_requests(config)
    assert ranks.bundles == ({"CPU": 1.0, "GPU": 1.0},) * 2
    assert ranks.choices == ({"role": "learner"}, {"role": "rollout"})
    assert make_engine_request(config).choices == ({"role": "rollout"},)
    assert [request.bundles for request in list_reward_requests(config)] == [({"CPU": 0.5},)] * 3
    assert count_resources(config) == {"CPU": 5.5, "GPU": 4.0}
    default = parse([]).config
    assert list_reward_requests(default) == []
    assert count_resources(default) == {"CPU": 2.0, "GPU": 0.0}


# A process of its own: whether Ray takes its second autoscaler is settled when Ray is imported.
SCRIPT = """
import json, threading, time
import ray
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from common.config.schema import Config
from common.errors import PlacementError
from learner.driver.places import reserve_places

context = ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
gcs = GcsClient(context.address_info["gcs_address"])

def count():
    state = get_cluster_resource_state(gcs)
    asked = sum(len(gang.requests) for gang in state.pending_gang_resource_requests)
    return asked + sum(one.count for request in state.cluster_resource_constraints for one in request.resource_requests)

def run(engines):
    config = {"rollout": {"engines": engines}, "cluster": {"wait_for_resources_s": 4}}
    try:
        with reserve_places(Config.model_validate(config)):
            pass
    except PlacementError:
        pass

seen = [count()]
runs = [threading.Thread(target=run, args=(engines,)) for engines in (2, 7)]
for thread in runs:
    thread.start()
deadline = time.monotonic() + 4
while count() < 11 and time.monotonic() < deadline:
    time.sleep(0.1)
seen.append(count())
for thread in runs:
    thread.join()
time.sleep(1)
seen.append(count())
print(json.dumps(seen))
"""


@pytest.mark.engine
def test_two_waiting_runs_are_both_seen_by_the_autoscaler_and_no_longer_than_they_wait() -> None:
    """`request_resources` is one value a cluster: the second run overwrote the first."""
    environment = os.environ | {"RAY_enable_autoscaler_v2": "1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, (1 + 2) + (1 + 7), 0]
