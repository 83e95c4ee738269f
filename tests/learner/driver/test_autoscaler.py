"""What the autoscaler is asked for, read back from a real Ray cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.config.cli import parse
from common.config.schema import Config
from learner.driver.autoscaler import list_bundles

ROOT = Path(__file__).parents[3]


def test_one_bundle_an_actor_and_none_for_what_reserves_nothing() -> None:
    config = Config.model_validate({"rollout": {"engines": 2}, "learner": {"ranks": 2}})
    assert list_bundles(config) == [{"CPU": 1, "GPU": 1}] * 4
    assert list_bundles(parse([]).config) == [{"CPU": 1}] * 2


# A process of its own: whether Ray takes its second autoscaler is settled when Ray is imported.
SCRIPT = """
import json, ray
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from learner.driver.autoscaler import request_nodes
from common.config.schema import Config

context = ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
gcs = GcsClient(context.address_info["gcs_address"])

def asked():
    constraints = get_cluster_resource_state(gcs).cluster_resource_constraints
    return sum(request.count for constraint in constraints for request in constraint.resource_requests)

seen = [asked()]
with request_nodes(Config.model_validate({"rollout": {"engines": 9}})):
    seen.append(asked())
seen.append(asked())
print(json.dumps(seen))
"""


@pytest.mark.engine
def test_the_request_stands_while_inside_and_no_longer() -> None:
    environment = os.environ | {"RAY_enable_autoscaler_v2": "1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 10, 0]
