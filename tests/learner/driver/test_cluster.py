"""What a run's own cluster consists of."""

from __future__ import annotations

import inspect
import os
import shutil
import stat
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from common.errors import PlacementError
from common.storage.temporary import make_private_folder

SERVICES = ("start_api_server", "start_monitor", "start_log_monitor")
CONNECT = """
import re, psutil
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
    ports = [c.laddr.ip for p in psutil.process_iter() if session in read(Path("/proc") / str(p.pid), "cmdline")
             for c in p.net_connections() if c.status == "LISTEN"]
    print(*re.findall(r"[a-z_]+\\.py|gcs_server|raylet", " ".join(one for one in commands if session in one)))
    print(session, *set(ports))
"""


@pytest.mark.parametrize("name", SERVICES)
def test_ray_has_the_services_that_are_left_out(name: str) -> None:
    """One that it starts under another name would be started after all."""
    node: Any = import_module("ray._private.node").Node
    assert callable(getattr(node, name))
    assert "get_dashboard_dependency_error" in inspect.getsource(import_module("ray._private.services"))


@pytest.mark.engine
def test_a_cluster_of_ones_own_has_no_dashboard_autoscaler_or_log_reader_and_lets_no_neighbour_in() -> None:
    """Every port is on the loopback interface; the session's folder, which Ray opens to all, is in a private one."""
    done = subprocess.run([sys.executable, "-c", CONNECT], check=True, capture_output=True, text=True, timeout=300)
    names, (session, *addresses) = (line.split() for line in done.stdout.splitlines())
    assert set(names) >= {"gcs_server", "raylet", "agent.py"}
    assert set(names).isdisjoint({"dashboard.py", "monitor.py", "log_monitor.py"})
    assert addresses
    assert set(addresses) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    private = Path(session).parents[1]
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert private.stat().st_uid == os.getuid()
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_private_folder_that_somebody_else_made_is_refused(kind: str, tmp_path: Path) -> None:
    place = tmp_path / f"rollcall-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if kind == "open":
        place.mkdir()
        place.chmod(0o755)
    elif kind == "link":
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.touch()
    with pytest.raises(PlacementError, match=r"no private folder(.|\n)*remove it"):
        make_private_folder(tmp_path)
    shutil.rmtree(place, ignore_errors=True)
    place.unlink(missing_ok=True)
    assert make_private_folder(tmp_path) == place
    assert make_private_folder(tmp_path) == place
