"""What the main thread of the driver waits for, read from its stack."""

from __future__ import annotations

from dataclasses import dataclass
from types import FrameType
from typing import Literal

from common.process import describe_frame, find_own_frame

Part = Literal["engine", "reward", "learner", "data"]
# By the file of the innermost line: who is waited for, and for what where no argument says so.
_FILES: tuple[tuple[str, Part, str], ...] = (
    ("rollout/fleet/", "engine", "groups"),
    ("rollout/reward_", "reward", "rewards"),
    ("learner/trainer/", "learner", "the learner's ranks"),
    ("common/data/", "data", "rows to be read and processed"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What a thread waits for."""

    part: Part | None  # None: for nobody, it is at work itself
    what: str  # "a learner step"; of no part where it is


def find_wait(frame: FrameType | None) -> Wait:
    """Return what a thread waits for, by its innermost frame.

    The innermost line of ours in a part's files says for whom. For what, says the argument `what` that our waits have:
    of `get([...], what="a learner step", timeout_s=1800)` it is "a learner step".
    """
    place, what = find_own_frame(frame), None
    while (frame := find_own_frame(frame)) is not None:
        what = what or _read_what(frame)
        where = describe_frame(frame)
        for file, part, usual in _FILES:
            if where.startswith(file):
                return Wait(part=part, what=what or usual)
        frame = frame.f_back
    return Wait(part=None, what=describe_frame(place) if place else "an unknown place")


def _read_what(frame: FrameType) -> str | None:
    """Return the argument `what` of a call; None where it has none."""
    code = frame.f_code
    if "what" not in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        return None
    value = frame.f_locals.get("what")
    return value if isinstance(value, str) else None
