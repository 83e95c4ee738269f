"""One batch on its way through a fleet: dealt out, streamed back, and what a lost engine owed sampled elsewhere.

Every request carries its seed, so another engine draws the very tokens the lost one would have drawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import BrokenEngineError
from common.types import FailedGroup, GenerationRequest, Group


@dataclass(slots=True, eq=False)
class Member:
    """An engine of the fleet."""

    id: str
    handle: Any
    joined: bool  # has served, or was there from the start; a replacement joins with its first load
    loading: Any = None  # the unresolved call that will make it serve
    deadline: float = 0.0


class Fleet(Protocol):
    """What a round needs of the engines it samples with."""

    step_timeout_s: float

    @property
    def version(self) -> int: ...
    def serving(self) -> list[Member]: ...
    def wait(self, sources: Mapping[Any, float]) -> list[Any]: ...
    def replace(self, member: Member, why: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Stream:
    """Groups on their way from one member."""

    member: Member
    owed: dict[str, GenerationRequest]
    deadline: float


class _LostError(Exception):
    """An engine can no longer be reached."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Round:
    """Every request is answered exactly once: by a group, or by the engine's refusal."""

    def __init__(self, fleet: Fleet, requests: Sequence[GenerationRequest]) -> None:
        if len({request.prompt_id for request in requests}) != len(requests):
            raise ValueError("a batch holds one prompt twice")
        self._fleet = fleet
        self._unsent = list(requests)
        self._streams: dict[Any, _Stream] = {}

    def groups(self) -> Iterator[Group | FailedGroup]:
        """As they finish. Raises EngineError when the fleet's restarts are spent."""
        while self._unsent or self._streams:
            self._dispatch()
            for source in self._fleet.wait({source: stream.deadline for source, stream in self._streams.items()}):
                try:
                    yield from self._read(source)
                except _LostError as lost:
                    self._give_up(self._streams[source].member, lost.why)
                    break  # other ready streams may have been this member's too: look again

    def _dispatch(self) -> None:
        """Deal what is unsent evenly over the serving members, a contiguous run each."""
        members = self._fleet.serving()
        if not members:
            return
        unsent, self._unsent = self._unsent, []
        bounds = [len(unsent) * index // len(members) for index in range(len(members) + 1)]
        for member, start, stop in zip(members, bounds[:-1], bounds[1:], strict=True):
            if share := unsent[start:stop]:
                source = member.handle.generate.options(num_returns="streaming").remote(share, self._fleet.version)
                owed = {request.prompt_id: request for request in share}
                self._streams[source] = _Stream(member, owed, self._limit())

    def _limit(self) -> float:
        return time.monotonic() + self._fleet.step_timeout_s

    def _read(self, source: Any) -> tuple[Group | FailedGroup, ...]:
        """The next groups of a stream, which goes at its end. Raises _LostError when its engine is dead or silent."""
        import ray

        stream = self._streams[source]
        if stream.deadline <= time.monotonic():
            raise _LostError(f"gave nothing for {self._fleet.step_timeout_s:g} s")
        try:
            groups: tuple[Group | FailedGroup, ...] = ray.get(next(source), timeout=self._fleet.step_timeout_s)
        except StopIteration:
            if stream.owed:
                raise _LostError(f"ended its stream owing {len(stream.owed)} groups") from None
            del self._streams[source]
            return ()
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.RayTaskError) as error:
            raise _LostError(why_lost(error)) from error
        for group in groups:
            del stream.owed[group.prompt_id]
        stream.deadline = self._limit()
        return groups

    def _give_up(self, member: Member, why: str) -> None:
        """Take back what a lost member owes, and have it replaced."""
        lost = [source for source, stream in self._streams.items() if stream.member is member]
        for source in lost:
            self._unsent += self._streams.pop(source).owed.values()
        self._fleet.replace(member, why)


def why_lost(error: BaseException) -> str:
    """Why an engine must be replaced, in words.

    Raises:
        Whatever the engine raised of its own that a replacement would raise too.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, BrokenEngineError):
        return str(cause.got)
    if isinstance(cause, Exception):
        raise cause from error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
