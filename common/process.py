"""A process: the one that started it, and where its threads are."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)
LOST_PARENT = 1  # exit code
CONTROL = "control"  # Ray's concurrency group of an actor for what is asked beside its work, one thread
_ROOT = Path(__file__).parents[1]
_OURS = tuple(f"{_ROOT / name}{os.sep}" for name in ("common", "rollout", "learner"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorView:
    """An actor of a run, as the driver sees it. It answers `describe_threads` in the group CONTROL."""

    name: str  # "engine-1"
    actor: Any  # Ray's handle of it
    owes: bool  # it was asked for something that it has not answered


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadReport:
    """Where the threads of a process are."""

    text: str  # the stack of each, for people
    place: str | None  # the innermost line of ours, beside control and lifeline; None: it has nothing to do


def end_with_parent(parent: int) -> None:
    """Let Linux kill this process as soon as `parent`, which started it, is gone; exit if it is gone already."""
    _call_prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(LOST_PARENT)


def end_with_raylet() -> None:
    """Let Linux kill this Ray worker as soon as its raylet is gone; do nothing in any other process.

    Ray's own worker ends once it finds out, which took 2 to 20 s. An engine holds its GPU for as long.
    """
    parent = os.getppid()
    if _read_name(parent) == "raylet":
        end_with_parent(parent)


def adopt_orphans() -> None:
    """Become the parent of whatever outlives its own parent below this process."""
    _call_prctl(PR_SET_CHILD_SUBREAPER, 1)


def _read_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it is gone, or this is no Linux
        return ""


def _call_prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def describe_threads() -> ThreadReport:
    """Return where every thread of this process is. The thread that asks is left out, as it always is here."""
    own, names = threading.get_ident(), {one.ident: one.name for one in threading.enumerate()}
    main = threading.main_thread().ident
    found = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)  # noqa: SLF001  # the main one first
    frames = {ident: frame for ident, frame in found if ident != own}
    stacks = [
        f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames.items()
    ]
    places = [find_own_frame(frame) for frame in frames.values()]
    at_work = [one for one in places if one is not None and one.f_code.co_name != "hold_lifeline"]
    return ThreadReport(text="\n".join(stacks), place=describe_frame(at_work[0]) if at_work else None)


def find_own_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of a stack that runs a line of ours; None where there is none."""
    while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return frame


def describe_frame(frame: FrameType) -> str:
    """Return `rollout/engine.py:250 in _serve`, of a file of others with its whole path."""
    file = frame.f_code.co_filename
    shown = Path(file).relative_to(_ROOT) if file.startswith(_OURS) else file
    return f"{shown}:{frame.f_lineno} in {frame.f_code.co_name}"
