"""The Ray cluster of a run: its own on this machine, or an existing one."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from common.config.schema import LOCAL_CLUSTER, ClusterConfig
from common.errors import PlacementError, describe_fault
from common.lean_imports import do_nothing
from common.storage.temporary import choose_ray_folder
from learner.guard.line import Lifeline, Line

START_S = 300.0
LEAVE_S = 30.0
_ONE_HOST = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # with 0 Ray listens on the loopback interface alone, on Linux too


@contextmanager
def connect(cluster: ClusterConfig, line: Line | None = None) -> Iterator[None]:
    """Join the cluster of `cluster.address` or RAY_ADDRESS, or start one for this run alone; leave it at the end.

    Args:
        line: to the parent process, which ends this one where Ray neither comes up nor says why, or dies.

    Raises:
        PlacementError: no cluster answers at the address.
    """
    line = line or Line()
    address = cluster.resolve_address()
    local = address == LOCAL_CLUSTER
    if local:
        # A cluster of our own lets no other process in, and leaves no token in the home folder.
        os.environ[_ONE_HOST] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # and reports nothing
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of calls that a lost process left: others tell of it
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    settings: dict[str, Any] = _lean_cluster() if local else {}
    try:
        with _shield_from_hangup(), line.wait("Ray to start", START_S):
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **settings
            )
    except Exception as error:
        raise PlacementError(
            "no Ray cluster can be reached",
            got=f"address {address}: {describe_fault(error)}",
            remedy="check cluster.address and RAY_ADDRESS, or leave both unset to run on this machine alone",
        ) from error
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray put its own in place, which prints a C++ stack and exits
    try:
        line.hold_on_to(tuple(_find_lifelines(local=local)))
        yield
    finally:
        line.hold_on_to(())
        _leave()


def _find_lifelines(*, local: bool) -> Iterator[Lifeline]:
    """Yield the two processes of Ray without which a driver cannot go on. A shared control store may be restarted."""
    import ray

    context = ray.get_runtime_context()
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
            yield Lifeline(name="the raylet of the driver's node", address=address, port=port, returns=False)
    address, _, port = context.gcs_address.rpartition(":")
    address = address.strip("[]")
    yield Lifeline(name="the control store (GCS) of Ray", address=address, port=int(port), returns=not local)


def _leave() -> None:
    """Leave the cluster, or go on without where Ray does not come back from it."""
    import ray

    leaving = threading.Thread(target=ray.shutdown, name="leave Ray", daemon=True)
    leaving.start()
    leaving.join(LEAVE_S)


@contextmanager
def _shield_from_hangup() -> Iterator[None]:
    """Let processes that start within the block never see SIGHUP, which a closed terminal sends to all of a group.

    This one gets it at the end of the block. They must live on while it saves what there is.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _lean_cluster() -> dict[str, Any]:
    """Settings of `ray.init` for a cluster that one run alone uses: without what it would start for other users.

    There are no dashboard, no autoscaler and no reader of logs, and no worker starts before it is asked for. That is
    3 s of CPU, and the second that `ray.init` waits for the dashboard.
    """
    node: Any = import_module("ray._private.node").Node
    node.start_api_server = node.start_monitor = node.start_log_monitor = do_nothing
    utils: Any = import_module("ray._private.utils")
    utils.get_dashboard_dependency_error = lambda: ImportError("left out")  # the node's agent serves no HTTP
    return {
        "include_dashboard": False,
        "_system_config": {"prestart_worker_first_driver": False},
        "_temp_dir": str(choose_ray_folder()),
    }
