"""A look at every actor of a run: its stacks where it answers, what Linux says of its process where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.placement import find_cause, wait
from common.process import CONTROL, ActorView, ThreadReport

ANSWER_S = 2.0  # for all actors together; a sound one takes milliseconds
STATES = {
    "R": "computes and does not answer",
    "S": "does not answer",
    "D": "waits for a disk or a device and does not answer",
    "T": "is stopped and does not answer",
    "t": "is stopped by a debugger and does not answer",
    "Z": "has ended",
    "X": "has ended",
    "": "is gone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What was seen of an actor."""

    name: str  # "engine-1"
    process: str  # "pid 17 on 10.0.0.9"
    owes: bool
    answers: bool
    state: str  # "is stopped and does not answer", "is at rollout/engine.py:250 in _serve"
    stacks: str

    def __str__(self) -> str:
        return f"{self.name} ({self.process}) {self.state}"


def look_at(views: Sequence[ActorView]) -> list[Sight]:
    """Ask every actor where its threads are, and look at the processes of those that do not answer."""

    asked = [one.actor.describe_threads.options(concurrency_group=CONTROL).remote() for one in views]
    answered = wait(asked, timeout_s=ANSWER_S)
    facts = [_read_facts(one) for one in views]
    mute = [fact for fact, call in zip(facts, asked, strict=True) if call not in answered]
    states = _read_states(mute)
    sights = []
    for view, fact, call in zip(views, facts, asked, strict=True):
        found = _take(call) if call in answered else states[_identify(fact)]
        if isinstance(found, ThreadReport):
            state = f"is at {found.place}" if found.place else "has nothing to do"
        else:
            state = found
        sights.append(
            Sight(
                name=view.name,
                process=_describe_process(fact),
                owes=view.owes,
                answers=isinstance(found, ThreadReport),
                state=state,
                stacks=found.text if isinstance(found, ThreadReport) else f"no stacks: it {state}\n",
            )
        )
    return sights


def read_process_state(pid: int) -> str:
    """Return the letter that Linux gives the state of a process of this host; nothing where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _take(call: Any) -> ThreadReport | str:
    """Return an answer that is there, or what Ray says of the actor."""
    import ray

    try:
        report: ThreadReport = ray.get(call, timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        return f"has died: {find_cause(error)}"
    return report


def _read_facts(view: ActorView) -> Mapping[str, Any]:
    """Return what Ray's control store knows of an actor."""
    import ray
    from ray._private.state import state

    try:
        found: Mapping[str, Any] = state.actor_table(view.actor._actor_id.hex())  # noqa: SLF001  # Ray shows it nowhere
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError):
        return {}
    return found


def _identify(fact: Mapping[str, Any]) -> tuple[str, int]:
    """Return node and process id of an actor, 0 where it has none yet."""
    return str(fact.get("Address", {}).get("NodeID", "")), int(fact.get("Pid", 0))


def _describe_process(fact: Mapping[str, Any]) -> str:
    pid, host = fact.get("Pid"), fact.get("Address", {}).get("IPAddress")
    return f"pid {pid} on {host}" if pid and host else "no process yet"


def _read_states(mute: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], str]:
    """Return what the processes of actors do that do not answer, by node and process id."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    found: dict[tuple[str, int], str] = {}
    asked = {}
    for node, pid in map(_identify, mute):
        if not pid:
            found[node, pid] = "is starting"
        elif node == here:
            found[node, pid] = STATES.get(read_process_state(pid), STATES["S"])
        else:
            asked[_ask_node(node, pid)] = node, pid
    answered = wait(list(asked), timeout_s=ANSWER_S)
    for call, key in asked.items():
        found[key] = "does not answer, nor does its host"
        if call in answered:
            try:
                found[key] = STATES.get(ray.get(call, timeout=ANSWER_S), STATES["S"])
            except ray.exceptions.RayError:  # that node is lost
                continue
    return found


def _ask_node(node: str, pid: int) -> Any:
    """Begin to read the state of a process on another node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    settings: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": there}
    task: Any = ray.remote(**settings)(read_process_state)
    return task.remote(pid)
