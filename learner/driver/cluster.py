"""The Ray cluster of a run: its own on this machine, or an existing one."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from common.config.schema import LOCAL_CLUSTER, ClusterConfig, Config
from common.errors import PlacementError
from common.lean_imports import do_nothing
from common.placement import describe_shortage
from learner.driver.autoscaler import list_bundles


@contextmanager
def connect(cluster: ClusterConfig) -> Iterator[None]:
    """Join the cluster of `cluster.address` or RAY_ADDRESS, or start one for this run alone; leave it at the end.

    Raises:
        PlacementError: no cluster answers at the address.
    """
    address = cluster.resolve_address()
    local = address == LOCAL_CLUSTER
    if local:
        # A cluster of our own lets no other process in, and leaves no token in the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # and reports nothing
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    settings: dict[str, Any] = _lean_cluster() if local else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PlacementError(
            "no Ray cluster can be reached",
            got=f"address {address}: {str(error).strip().splitlines()[0]}",
            remedy="check cluster.address and RAY_ADDRESS, or leave both unset to run on this machine alone",
        ) from error
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray put its own in place, which prints a C++ stack and exits
    try:
        yield
    finally:
        ray.shutdown()


def _lean_cluster() -> dict[str, Any]:
    """Settings of `ray.init` for a cluster that one run alone uses: without what it would start for other users.

    There are no dashboard, no autoscaler and no reader of logs, and no worker starts before it is asked for. That is
    3 s of CPU, and the second that `ray.init` waits for the dashboard.
    """
    node: Any = import_module("ray._private.node").Node
    node.start_api_server = node.start_monitor = node.start_log_monitor = do_nothing
    utils: Any = import_module("ray._private.utils")
    utils.get_dashboard_dependency_error = lambda: ImportError("left out")  # the node's agent serves no HTTP
    return {"include_dashboard": False, "_system_config": {"prestart_worker_first_driver": False}}


def count_resources(config: Config) -> dict[str, float]:
    """Add up the logical CPUs and GPUs that all actors of a run reserve: {"CPU": 2.5, "GPU": 0.0}."""
    actors = list_bundles(config)
    return {name: sum(actor.get(name, 0.0) for actor in actors) for name in ("CPU", "GPU")}


def require(needed: Mapping[str, float], *, wait_s: float) -> None:
    """Wait until the cluster has what the run needs free.

    Raises:
        PlacementError: something is not free after `wait_s` seconds; the message has every number.
    """
    import ray

    deadline = time.monotonic() + wait_s
    while True:
        free = ray.available_resources()
        short = {name: amount for name, amount in needed.items() if free.get(name, 0.0) < amount}
        if not short:
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
    raise describe_shortage("this run", needed)
