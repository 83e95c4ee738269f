"""The hosts of a run, looked at before anything loads: can they do what the configuration takes for granted?

One task a host, some seconds in all. What is wrong is refused with the host's name, not found out at the first
checkpoint.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.config.schema import Config, RewardConfig
from common.errors import PlacementError, RollcallError, RunFolderError
from common.models.hub import find_snapshot
from common.placement import ANSWER_S, answers, get
from common.shared_folder import SharedFolder, share_folder
from common.storage.output import Place
from common.torch_build import require_torch_build
from learner.driver.places import Places
from rollout.rewards.loading import MODEL_PREFIX

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

LOOK_S = 60.0  # for all hosts together; a disk that hangs takes longer


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTask:
    """What one host is asked."""

    folder: Place | None  # the run folder, if processes there write into it
    secret: str  # what the driver wrote into the folder
    neighbours: Mapping[str, tuple[str, int]]  # name -> address and port of Ray there


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """What one host found."""

    name: str
    wrote: bool  # a mark of its own into the run folder
    folder_fault: str | None  # why it could not
    no_route_to: tuple[str, ...]  # neighbours that do not answer
    setup_fault: RollcallError | None  # what is wrong with what is installed there


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A host as Ray knows it."""

    id: str
    name: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


def check_hosts(config: Config, place: Place | None, places: Places) -> None:
    """Refuse hosts that cannot do their part of the run. A run on the driver's host alone has nothing to ask.

    Args:
        place: the run folder on a disk, or the bucket that ranks write to; None where nobody writes.

    Raises:
        RunFolderError: a host of a rank sees another disk at the path of the run folder, or cannot use the bucket.
        PlacementError: two hosts that work together cannot reach each other.
        RollcallError: what is installed on a host does not fit `cluster.device`.
    """
    import ray

    ranks, engines = _find_nodes([places.learner] if places.learner else []), _find_nodes(places.engines)
    if {*ranks, *engines} <= {ray.get_runtime_context().get_node_id()}:
        return
    writers = {**ranks, **(engines if config.tracking.profile_steps else {})}
    secret = secrets.token_hex(16)
    folder = place if isinstance(place, Path) else None
    mark = folder / f".shared-{secret}" if folder else None
    if mark:
        mark.write_text(secret)
    try:
        reports = _ask(
            {
                node: HostTask(
                    folder=place if node.id in writers else None,
                    secret=secret,
                    neighbours={str(other): (other.address, other.port) for other in ranks.values() if other != node},
                )
                for node in {**ranks, **engines}.values()
            },
            device=config.cluster.device,
        )
        _refuse_unshared(place, secret, reports)
    finally:
        if folder:
            for left in folder.glob(f".shared-{secret}*"):
                with suppress(OSError):
                    left.unlink()
    _refuse_unreachable(reports)
    for report in reports.values():
        if report.setup_fault:
            raise report.setup_fault


def look(task: HostTask, device: Literal["cpu", "cuda"]) -> HostReport:
    """Answer for the host this runs on."""
    name = socket.gethostname()
    fault = _find_folder_fault(task.folder, task.secret) if task.folder else None
    return HostReport(
        name=name,
        wrote=task.folder is not None and fault is None,
        folder_fault=fault,
        no_route_to=tuple(other for other, place in task.neighbours.items() if not answers(*place)),
        setup_fault=_find_setup_fault(device),
    )


def share_model(path: str, revision: str | None, places: Places, *, grows: bool) -> str | SharedFolder:
    """Let every host find the model: as it is where the run stays on this host, else as a folder that travels.

    A hub id travels where this host has all of its files; elsewhere each host asks the hub.

    Args:
        grows: engines may come on other hosts later.
    """
    import ray

    groups = [*places.engines, *([places.learner] if places.learner else [])]
    if grows or not _find_nodes(groups).keys() <= {ray.get_runtime_context().get_node_id()}:
        return _share(path, revision)
    return path


def share_reward_models(config: RewardConfig) -> dict[str, str | SharedFolder]:
    """Let every host find the reward models, by the name of their function; reward workers may run on any host."""
    import ray

    if len(ray.nodes()) == 1:
        return {}
    names = [name for name in config.functions if name.startswith(MODEL_PREFIX)]
    return {name: _share(name.removeprefix(MODEL_PREFIX), None) for name in names}


def _share(path: str, revision: str | None) -> str | SharedFolder:
    folder = path if Path(path).is_dir() else find_snapshot(path, revision)
    return share_folder(str(folder)) if folder else path


def _find_nodes(groups: Sequence[PlacementGroup]) -> dict[str, _Node]:
    """Return the nodes that hold the bundles of granted places, by Ray's id."""
    import ray
    from ray.util.placement_group import placement_group_table

    ids = {node for group in groups for node in placement_group_table(group)["bundles_to_node_id"].values()}
    return {
        node["NodeID"]: _Node(
            id=node["NodeID"],
            name=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            port=node["NodeManagerPort"],
        )
        for node in ray.nodes()
        if node["NodeID"] in ids
    }


def _ask(tasks: Mapping[_Node, HostTask], *, device: str) -> dict[_Node, HostReport]:
    """Let every node look for itself."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(num_cpus=0, max_retries=0)(look)
    refs = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(task, device)
        for node, task in tasks.items()
    ]
    reports = get(refs, what=f"a look at the hosts {', '.join(map(str, tasks))}", timeout_s=LOOK_S)
    return dict(zip(tasks, reports, strict=True))


def _refuse_unshared(place: Place | None, secret: str, reports: Mapping[_Node, HostReport]) -> None:
    """Refuse a run folder that a host cannot use, or in which the driver does not see what the host wrote."""
    for node, report in reports.items():
        fault = report.folder_fault
        if isinstance(place, Path) and report.wrote and not _holds(place / f".shared-{secret}-{report.name}", secret):
            fault = "what it writes there does not arrive here"
        if fault:
            shared = isinstance(place, Path)
            raise RunFolderError(
                "the run folder is not on a disk that all hosts of the run share"
                if shared
                else "a host of the run cannot use its bucket",
                got=f"{place}: on host {node} {fault}",
                remedy="point run_dir at a shared disk, or at a bucket (run_dir=s3://bucket/folder)"
                if shared
                else "give Ray's processes on that host the keys and AWS_ENDPOINT_URL, or a route to the server",
            )


def _refuse_unreachable(reports: Mapping[_Node, HostReport]) -> None:
    for node, report in reports.items():
        if report.no_route_to:
            raise PlacementError(
                "two hosts of the run cannot reach each other",
                got=f"host {node} gets no answer from {', '.join(report.no_route_to)} within {ANSWER_S:g} s",
                remedy="mend the route or the firewall between them: Ray, gloo and NCCL need every port",
            )


def _find_folder_fault(folder: Place, secret: str) -> str | None:
    """Return why this host does not share the folder, after it wrote a mark of its own there; None where it does."""
    if not isinstance(folder, Path):
        return folder.probe()
    if not folder.is_dir():
        return "there is no such folder"
    if not _holds(folder / f".shared-{secret}", secret):
        return "another folder has this path"
    try:
        (folder / f".shared-{secret}-{socket.gethostname()}").write_text(secret)
    except OSError as error:
        return f"it cannot be written: {error.strerror}"
    return None


def _holds(mark: Path, secret: str) -> bool:
    try:
        return mark.read_text() == secret
    except OSError:
        return False


def _find_setup_fault(device: Literal["cpu", "cuda"]) -> RollcallError | None:
    try:
        require_torch_build(device)
    except RollcallError as error:
        return error
    return None
