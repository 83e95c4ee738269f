"""What the fleet sends an engine while it serves a stream, and what comes back on it."""

from __future__ import annotations

from dataclasses import dataclass

from common.types import FailedGroup, GenerationRequest, Group, LoadedWeights, WeightManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Requests for a stream."""

    stream: int
    requests: tuple[GenerationRequest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """Requests of a stream that nobody waits for any more."""

    stream: int
    prompt_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Newer weights, with which the engine goes on in the middle of a stream."""

    stream: int
    manifest: WeightManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of a stream, once it has answered or dropped so many requests."""

    stream: int
    sent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedUpdate:
    """Newer weights whose bytes arrived damaged. The engine goes on with those it holds."""

    version: int
    why: str


Sent = Submission | Cancellation | Update | End
Outcome = Group | FailedGroup | LoadedWeights | DamagedUpdate
Outcomes = tuple[Outcome, ...]
