"""What a run's own cluster consists of."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

SERVICES = ("start_api_server", "start_monitor", "start_log_monitor")
CONNECT = """
import re
from pathlib import Path
from common.config.schema import ClusterConfig
from learner.driver.cluster import connect

def read(process, name):
    try:
        return (process / name).read_text()
    except OSError:  # it has ended
        return ""

with connect(ClusterConfig(address="local")):
    import ray
    session = ray._private.worker.global_worker.node.get_session_dir_path()
    commands = [read(process, "cmdline") for process in Path("/proc").glob("[0-9]*")]
    print(*re.findall(r"[a-z_]+\\.py|gcs_server|raylet", " ".join(one for one in commands if session in one)))
"""


@pytest.mark.parametrize("name", SERVICES)
def test_ray_has_the_services_that_are_left_out(name: str) -> None:
    """One that it starts under another name would be started after all."""
    node: Any = import_module("ray._private.node").Node
    assert callable(getattr(node, name))
    assert "get_dashboard_dependency_error" in inspect.getsource(import_module("ray._private.services"))


@pytest.mark.engine
def test_a_cluster_of_ones_own_has_no_dashboard_autoscaler_or_log_reader() -> None:
    done = subprocess.run([sys.executable, "-c", CONNECT], check=True, capture_output=True, text=True, timeout=300)
    parts = set(done.stdout.split())
    assert parts >= {"gcs_server", "raylet", "agent.py"}
    assert parts.isdisjoint({"dashboard.py", "monitor.py", "log_monitor.py"})
    assert done.stderr == ""
