"""One batch of requests sampled by a fleet: dealt out, streamed back, and sampled elsewhere when an engine is lost.

Every request carries its seed, so another engine draws the very tokens the lost one would have drawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from common.errors import BrokenEngineError
from common.types import FailedGroup, GenerationRequest, Group

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


@dataclass(slots=True, eq=False)
class Member:
    """An engine of the fleet, as the fleet knows it."""

    id: str
    handle: Any  # of the actor
    place: PlacementGroup | None
    joined: bool  # has served, or was there from the start; a replacement joins with its first load
    loading: Any = None  # the unresolved call that will make it serve; None while it serves
    deadline: float = 0.0  # of that call, on the monotonic clock


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
    """Groups on their way from one engine."""

    member: Member
    pending: dict[str, GenerationRequest]  # by prompt id: what the engine has still to answer
    deadline: float  # for the next groups, on the monotonic clock


class _LostEngineError(Exception):
    """An engine is dead, silent, or ended its stream too early."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class SamplingRound:
    """Answers every request exactly once: by a group, or by the engine's refusal."""

    def __init__(self, fleet: Fleet, requests: Sequence[GenerationRequest]) -> None:
        if len({request.prompt_id for request in requests}) != len(requests):
            raise ValueError("a batch holds one prompt twice")
        self._fleet = fleet
        self._unsent = list(requests)
        self._streams: dict[Any, _Stream] = {}  # by the streaming generator that Ray waits for

    def groups(self) -> Iterator[Group | FailedGroup]:
        """Yield groups as they finish. Raises EngineError when the fleet's restarts are spent."""
        while self._unsent or self._streams:
            self._dispatch()
            for source in self._fleet.wait({source: stream.deadline for source, stream in self._streams.items()}):
                try:
                    yield from self._read(source)
                except _LostEngineError as lost:
                    self._replace(self._streams[source].member, lost.why)
                    break  # other ready streams may have been this engine's too: wait again

    def _dispatch(self) -> None:
        """Deal what is unsent evenly over the serving engines, a contiguous run each: 5 requests over 2 are 2 and 3."""
        members = self._fleet.serving()
        if not members:
            return
        unsent, self._unsent = self._unsent, []
        bounds = [len(unsent) * index // len(members) for index in range(len(members) + 1)]
        for member, start, stop in zip(members, bounds[:-1], bounds[1:], strict=True):
            if share := unsent[start:stop]:
                source = member.handle.generate.options(num_returns="streaming").remote(share, self._fleet.version)
                pending = {request.prompt_id: request for request in share}
                self._streams[source] = _Stream(member, pending, self._next_deadline())

    def _next_deadline(self) -> float:
        return time.monotonic() + self._fleet.step_timeout_s

    def _read(self, source: Any) -> tuple[Group | FailedGroup, ...]:
        """Return the next groups of a stream; none at its end, when the stream goes.

        Raises _LostEngineError when the engine cannot give the rest.
        """
        import ray

        stream = self._streams[source]
        if stream.deadline <= time.monotonic():
            raise _LostEngineError(f"gave nothing for {self._fleet.step_timeout_s:g} s")

        try:
            groups: tuple[Group | FailedGroup, ...] = ray.get(next(source), timeout=self._fleet.step_timeout_s)
        except StopIteration:
            if stream.pending:
                raise _LostEngineError(f"ended its stream owing {len(stream.pending)} groups") from None
            del self._streams[source]
            return ()
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.RayTaskError) as error:
            raise _LostEngineError(explain_loss(error)) from error

        for group in groups:
            del stream.pending[group.prompt_id]
        stream.deadline = self._next_deadline()
        return groups

    def _replace(self, member: Member, why: str) -> None:
        """Take back what a lost engine has not answered, and have the engine replaced."""
        lost = [source for source, stream in self._streams.items() if stream.member is member]
        for source in lost:
            self._unsent += self._streams.pop(source).pending.values()
        self._fleet.replace(member, why)


def explain_loss(error: BaseException) -> str:
    """Return why an engine must be replaced, in words.

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
