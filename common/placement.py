"""Waiting on Ray and reserving places in it: every wait has a name and a deadline, every shortage its numbers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from common.capacity import (
    Labels,
    PlaceRequest,
    could_hold,
    describe_shortage,
    read_nodes,
    refuse_impossible,
    without_zeros,
)
from common.errors import DeadlineError, RollcallError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

GRANT_S = 8.0  # granting free resources takes milliseconds; after this long somebody else holds them
ANSWER_S = 3.0
LOOK_S = 1.0  # between two looks of a wait whether a signal came
RENEW_S = 2.0  # within which a place on a live node is granted


@contextmanager
def surface_signals() -> Iterator[None]:
    """Raise what a signal's handler raised within a call of Ray as it was raised.

    Where it strikes `ray.wait`, Ray wraps it: "SystemError: CoreWorker.wait returned a result with an exception set".
    """
    try:
        yield
    except SystemError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


def wait(refs: Sequence[Any], *, count: int | None = None, timeout_s: float) -> list[Any]:
    """Return the refs whose values are made, on whichever host, once as many as wanted are, or the time is over.

    Looks up every second: neither `ray.wait` nor `ray.get` lets a signal through before it ends, and a run that waits
    would not heed SIGTERM.

    Args:
        count: how many are wanted; None: all.
    """
    import ray

    wanted, until = len(refs) if count is None else count, time.monotonic() + timeout_s
    while refs:
        left = max(0.0, until - time.monotonic())
        with surface_signals():
            made, _ = ray.wait(list(refs), num_returns=wanted, timeout=min(left, LOOK_S), fetch_local=False)
        if len(made) >= wanted or left <= LOOK_S:
            return list(made)
    return []


def get(refs: Sequence[Any], *, what: str, timeout_s: float) -> list[Any]:
    """Return the values of object refs, in order; the first failure ends the wait for all.

    Raises DeadlineError naming `what`, a RollcallError of the remote side as it was raised there, or Ray's own error.
    """
    import ray

    until = time.monotonic() + timeout_s
    try:
        try:
            return _fetch(refs, timeout_s=min(timeout_s, LOOK_S))
        except ray.exceptions.GetTimeoutError:
            _wait_for_all(refs, until)
        return _fetch(refs, timeout_s=max(0.0, until - time.monotonic()))  # at once: it begins anew each time
    except ray.exceptions.GetTimeoutError as error:
        missing = len(refs) - len(wait(refs, timeout_s=0))
        raise DeadlineError(
            f"waited too long for {what}",
            got=f"{missing} of {len(refs)} still missing after {timeout_s:g} s",
            remedy="look for its process in Ray's logs, or raise the timeout in its section of the configuration",
        ) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RollcallError):
            raise error.cause from error
        raise


def _wait_for_all(refs: Sequence[Any], until: float) -> None:
    """Wait until all values are made, or that moment of the monotonic clock. Raises the first failure among them."""
    import ray

    seen = set[Any]()
    while (left := until - time.monotonic()) > 0:
        made = wait(refs, timeout_s=min(left, LOOK_S))
        if len(made) == len(refs):
            return
        for ref in made:
            if ref not in seen:
                seen.add(ref)
                with suppress(ray.exceptions.GetTimeoutError):  # a value is fetched later, a failure is here
                    _fetch([ref], timeout_s=0)


def _fetch(refs: Sequence[Any], *, timeout_s: float) -> list[Any]:
    import ray

    with surface_signals():
        return list(ray.get(list(refs), timeout=timeout_s))


def find_cause(error: Exception) -> str:
    """Return what a remote process raised, without Ray's traceback around it: "ValueError: no such file"."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    last = max((index for index, line in enumerate(lines) if not line.startswith(" ")), default=0)
    return "; ".join(line.strip() for line in lines[last:])


def reserve(requests: Sequence[PlaceRequest], *, wait_s: float, grant_s: float = GRANT_S) -> list[PlacementGroup]:
    """Return a placement group for each request, in order, with all of its bundles granted.

    All are asked for at once, so that an autoscaler sees the whole demand. What is not granted on nodes with the first
    labels of a request is then asked for with its next ones.

    Args:
        wait_s: seconds that nodes may take to join, for each choice of labels; with 0 a cluster that could never hold
            the requests is refused at once.
        grant_s: seconds that others may take to free what is there.

    Raises:
        PlacementError: with what is missing and what each node has. Nothing stays reserved.
    """
    from ray.util.placement_group import remove_placement_group

    nodes = read_nodes()
    if wait_s == 0:
        refuse_impossible(requests, nodes)
    granted: dict[int, PlacementGroup] = {}
    try:
        for choice in range(max((len(request.choices) for request in requests), default=0)):
            asked = {
                index: _ask(request, request.choices[choice])
                for index, request in enumerate(requests)
                if index not in granted and choice < len(request.choices)
                if wait_s or could_hold(request, request.choices[choice], nodes)
            }
            granted |= _wait_for(asked, max(wait_s, grant_s))
        _insist(requests, granted)
    except BaseException:
        for group in granted.values():
            remove_placement_group(group)
        raise
    return [granted[index] for index in range(len(requests))]


def _wait_for(asked: Mapping[int, PlacementGroup], timeout_s: float) -> dict[int, PlacementGroup]:
    """Return the places that are granted in time; the others are no longer asked for."""
    from ray.util.placement_group import remove_placement_group

    deadline = time.monotonic() + timeout_s
    granted = {}
    for index, group in asked.items():
        if group.wait(max(0.01, deadline - time.monotonic())):
            granted[index] = group
        else:
            remove_placement_group(group)
    return granted


def _insist(requests: Sequence[PlaceRequest], granted: Mapping[int, PlacementGroup]) -> None:
    if missing := [request for index, request in enumerate(requests) if index not in granted]:
        raise describe_shortage(missing, read_nodes())


def renew(group: PlacementGroup, request: PlaceRequest) -> PlacementGroup:
    """Return a place for the part whose process died: its old one, or one elsewhere where its node is lost too.

    Ray takes half a minute to notice a lost node, and places what is asked for meanwhile there again. So nodes that do
    not answer are left out by name. Nobody waits for nodes to join: the place may be granted later.
    """
    from ray.util.placement_group import remove_placement_group

    lost = _find_silent_node(group)
    if lost is None:
        return group
    remove_placement_group(group)
    silent = [lost]
    for labels in request.choices:
        fresh = _ask(request, {**labels, **_leave_out(silent)})
        while fresh.wait(RENEW_S):
            lost = _find_silent_node(fresh)
            if lost is None:
                return fresh
            remove_placement_group(fresh)
            silent.append(lost)
            fresh = _ask(request, {**labels, **_leave_out(silent)})
        remove_placement_group(fresh)
    return _ask(request, {**request.choices[0], **_leave_out(silent)})


def _find_silent_node(group: PlacementGroup) -> str | None:
    """Return the id of a node of this place where Ray does not answer; None where all of them do."""
    import ray
    from ray.util.placement_group import placement_group_table

    ids = set(placement_group_table(group)["bundles_to_node_id"].values())
    for node in ray.nodes():
        if node["NodeID"] in ids and not answers(node["NodeManagerAddress"], node["NodeManagerPort"]):
            return str(node["NodeID"])
    return None


def _leave_out(nodes: Sequence[str]) -> dict[str, str]:
    """Return Ray's label selector for any node but these."""
    return {"ray.io/node-id": f"!in({','.join(nodes)})"}


def answers(address: str, port: int) -> bool:
    """Return whether somebody takes a connection there, within 3 s."""
    try:
        socket.create_connection((address, port), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def schedule_in(group: PlacementGroup | None, *, bundle: int = 0) -> Any:
    """Return Ray's scheduling strategy of an actor in one bundle of a place; of None: wherever there is room."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle) if group else "DEFAULT"


def ask(request: PlaceRequest, *, choice: int = 0, without: Sequence[str] = ()) -> PlacementGroup:
    """Begin to reserve a place on nodes with one choice of labels, and none of the nodes `without`, by Ray's ids."""
    return _ask(request, {**request.choices[choice], **(_leave_out(without) if without else {})})


def find_node(group: PlacementGroup) -> str | None:
    """Return Ray's id of the node of a place, of the first where it has several; None until it is granted."""
    from ray.util.placement_group import placement_group_table

    facts = placement_group_table(group)
    if facts.get("state") != "CREATED":
        return None
    return next((str(node) for node in facts["bundles_to_node_id"].values() if node), None)


def list_spare_resources() -> dict[str, float]:
    """Return what no actor has reserved in the cluster, by Ray's names: {"CPU": 1.0}."""
    import ray

    return {name: float(amount) for name, amount in ray.available_resources().items()}


def release(group: PlacementGroup) -> None:
    """Give a place back, or take back that it was asked for."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)


def list_draining_nodes() -> dict[str, float | None]:
    """Return the seconds that are left to each node which is to go, by Ray's id; None where nobody says when.

    Returns none where Ray does not answer.
    """
    import ray
    from ray._private.state import state

    try:
        found = state.get_draining_nodes()
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError):
        return {}
    now = time.time()
    return {node: deadline_ms / 1000 - now if deadline_ms else None for node, deadline_ms in found.items()}


def _ask(request: PlaceRequest, labels: Labels) -> PlacementGroup:
    """Begin to reserve a place on nodes with these labels."""
    from ray.util.placement_group import placement_group

    bundles = [without_zeros(bundle) for bundle in request.bundles]
    selectors = [dict(labels)] * len(bundles) if labels else None
    group: PlacementGroup = placement_group(bundles, strategy="PACK", bundle_label_selector=selectors)
    return group
