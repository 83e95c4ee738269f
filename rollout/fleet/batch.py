"""The requests of one call, each on its way to exactly one answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import NamedTuple

from common.types import FailedGroup, GenerationRequest, Group, WeightManifest

SUSPECT = 2  # engines lost while they owed a request, from which on it is sent alone
LONE_LOSSES = 2  # engines lost with that request alone, after which it is to blame


class CopyRequest(NamedTuple):
    """An engine that came after a broadcast asks the driver for the same weights as bytes."""

    version: int


Answer = Group | FailedGroup | CopyRequest | BaseException


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that are all sampled with the same weights. The fleet's thread owns all of it but `answers`."""

    weights: WeightManifest  # kept for as long as somebody may want them
    size: int  # requests
    taken: int = field(default=0, init=False)  # answers that the driver has
    unsent: deque[GenerationRequest]  # in the order they go out; suspects last
    open: dict[str, GenerationRequest]  # by prompt id: those without an answer
    holders: dict[str, list[str]] = field(default_factory=dict)  # names of engines that owe it; two where it is copied
    strikes: dict[str, int] = field(default_factory=dict)  # engines lost while they owed it
    lone_losses: dict[str, int] = field(default_factory=dict)  # engines lost while they owed it alone, as a suspect
    answers: SimpleQueue[Answer] = field(default_factory=SimpleQueue)  # for the driver
    _next: Answer | None = None  # of these, the one that `has_answer` has seen

    @classmethod
    def of(cls, requests: Sequence[GenerationRequest], weights: WeightManifest) -> Batch:
        """Make a batch. Raises ValueError where a prompt is asked twice."""
        by_id = {request.prompt_id: request for request in requests}
        if len(by_id) != len(requests):
            raise ValueError("a batch holds one prompt twice")
        return cls(weights=weights, size=len(requests), unsent=deque(requests), open=by_id)

    def has_answer(self, *, wait_s: float) -> bool:
        """Say whether another answer is there, or comes within so many seconds."""
        if self.taken == self.size:
            return False
        if self._next is None:
            with suppress(Empty):
                self._next = self.answers.get(block=wait_s > 0, timeout=wait_s)
        return self._next is not None

    def next_answer(self, *, wait_s: float) -> Answer:
        """Return the next answer. Raises Empty where none comes within so many seconds."""
        answer, self._next = self._next, None
        return self.answers.get(timeout=wait_s) if answer is None else answer

    def is_suspect(self, request: GenerationRequest) -> bool:
        """Say whether too many engines were lost while they owed a request."""
        return self.strikes.get(request.prompt_id, 0) >= SUSPECT

    def answer(self, outcome: Group | FailedGroup) -> bool:
        """Hand an answer to the driver, unless another engine gave it first. Return whether it was the first."""
        if self.open.pop(outcome.prompt_id, None) is None:
            return False
        self.answers.put(outcome)
        return True

    def take_back(self, requests: Iterable[GenerationRequest], why: str) -> bool:
        """Send again what a lost engine owed, unless a request is to blame; return whether one is suspected of it.

        A request is to blame where engines were lost that owed nothing else. It is answered as failed.
        """
        owed = [request for request in requests if request.prompt_id in self.open]
        alone = len(owed) == 1 and self.is_suspect(owed[0])
        for request in owed:
            name = request.prompt_id
            self.strikes[name] = self.strikes.get(name, 0) + 1
            if alone:
                self.lone_losses[name] = self.lone_losses.get(name, 0) + 1
            if self.lone_losses.get(name, 0) >= LONE_LOSSES:
                self.answer(FailedGroup(prompt_id=name, reason=f"engines are lost with it: {why}"))
            elif not self.holders.get(name):  # no other engine is at work on it
                self._put_back(request)
        return alone

    def put_back(self, requests: Iterable[GenerationRequest]) -> None:
        """Send again what an engine leaves undone, unless another one is at work on it."""
        for request in requests:
            if request.prompt_id in self.open and not self.holders.get(request.prompt_id):
                self._put_back(request)

    def _put_back(self, request: GenerationRequest) -> None:
        if self.is_suspect(request):
            self.unsent.append(request)
        else:
            self.unsent.appendleft(request)
