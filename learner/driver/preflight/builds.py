"""Before all other steps: the builds of torch and vLLM installed here, where engines and ranks will run here."""

from __future__ import annotations

from collections.abc import Callable

from common.config.schema import LOCAL_CLUSTER, ClusterConfig
from common.errors import ConfigError
from common.storage.temporary import choose_ray_folder
from common.torch_build import require_torch_build


def check_builds(cluster: ClusterConfig, *, say: Callable[[str], None] | None = None) -> None:
    """Hold the builds against `cluster.device` on a cluster of this machine alone: another checks its own nodes.

    Ray's folder is looked at too.

    Args:
        say: takes a warning in place of the error, for a dry run.

    Raises:
        ConfigError: they do not fit, and there is no `say`.
        PlacementError: there is no folder for Ray's session.
    """
    if cluster.resolve_address() != LOCAL_CLUSTER:
        return
    choose_ray_folder()
    try:
        require_torch_build(cluster.device)
    except ConfigError as error:
        if say is None:
            raise
        say(f"warning: {error.what}: {error.got}; {error.remedy}")
