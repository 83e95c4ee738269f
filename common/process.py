"""A process and the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)
LOST_PARENT = 1  # exit code


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
