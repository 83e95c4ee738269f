"""What ended a run, found in an error: which ring, which process on which node. And Ray's errors as one of ours.

A ring is a circle of recovery: an engine, a reward worker or a rank that is lost, a node, the driver itself.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from common.command import Terminated
from common.errors import (
    EngineError,
    LearnerError,
    LearnerLostError,
    PlacementError,
    ProcessError,
    RewardError,
    RollcallError,
    describe_cause,
    describe_fault,
)
from common.placement import find_cause
from learner.tracking.records import Cause

RING_OF_ACTOR = {"LearnerRank": "learner", "RolloutEngine": "engine", "RewardActor": "reward"}
RING_OF_ERROR = {EngineError: "engine", LearnerError: "learner", RewardError: "reward", PlacementError: "node"}


def name_cause(error: BaseException) -> Cause:
    """Return what ended a run that did not finish. Of several errors in a row the first names the process."""
    here, driver = socket.gethostname(), f"driver (pid {os.getpid()})"
    if not isinstance(error, Exception):
        return Cause(ring="user", actor=driver, node=here, error=_name_end(error))
    chain = list(_unroll(error))
    ring = next((ring for one in chain for kind, ring in RING_OF_ERROR.items() if isinstance(one, kind)), "driver")
    for one in reversed(chain):
        if isinstance(one, LearnerLostError):
            return Cause(ring="learner", actor=one.actor, node=one.node, error=describe_cause(one))
        if _is_rays(one) and (found := _find_actor(str(one))):
            actor, node = found
            ring = RING_OF_ACTOR.get(actor.partition(" ")[0], ring)
            return Cause(ring=ring, actor=actor, node=node, error=describe_cause(error))
    return Cause(ring=ring, actor=driver, node=here, error=describe_cause(error))


@contextmanager
def explain_ray_errors() -> Iterator[None]:
    """Let what Ray raises within the block be one error of ours: what a process of the run raised, or what is lost.

    Raises:
        RollcallError: as a process of the run raised it.
        ProcessError: for anything else that Ray raises.
    """
    try:
        yield
    except Exception as error:
        if not _is_rays(error):
            raise
        raised = getattr(error, "cause", None)
        if isinstance(raised, RollcallError):
            raise raised from error
        found = _find_actor(str(error))
        actor = found[0] if found else "a part of the run"
        if isinstance(raised, BaseException):
            raise ProcessError(
                f"{actor} failed",
                got=describe_fault(raised),
                remedy="its traceback is in events.jsonl; mend that, and start again with resume=auto",
            ) from error
        raise ProcessError(
            f"{actor} is lost",
            got=f"{type(error).__name__}: {find_cause(error)}",
            remedy="look in Ray's logs for who ended it, as for want of memory, and start again with resume=auto",
        ) from error


def _unroll(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_rays(error: BaseException) -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and isinstance(error, ray.exceptions.RayError)


def _find_actor(text: str) -> tuple[str, str] | None:
    """Return the actor and the node that a message of Ray's names: ("LearnerRank (pid 17)", "10.0.0.9")."""
    if called := re.search(r"ray::(\w+)[.\w]*\(\)\S* \(pid=(\d+), ip=([^,)\s]+)", text):
        return f"{called[1]} (pid {called[2]})", called[3]
    if named := re.search(r"class_name: (\w+)", text):
        pid, node = re.search(r"pid: (\d+)", text), re.search(r"ip: (\S+)", text)
        return f"{named[1]} (pid {pid[1] if pid else 'unknown'})", node[1] if node else "unknown"
    return None


def _name_end(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C"
    return signal.Signals(error.number).name if isinstance(error, Terminated) else type(error).__name__
