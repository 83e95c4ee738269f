"""Who gets which requests: guided self-scheduling, and copies of what a slow engine owes.

An engine asks for half a fair share of what is left, again and again. So a slow engine ends with little:

    16 requests, engines a and b, b three times slower
    a 4, b 4 | a 2, a 2, a 1, b 1 ...

The request's seed decides its tokens, so which engine samples it changes nothing (law 5).

Source: Polychronopoulos and Kuck 1987, guided self-scheduling; Dean and Barroso 2013, hedged requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median_low

from common.types import GenerationRequest
from rollout.fleet.batch import Batch
from rollout.fleet.member import Member, Stream

AHEAD = 1.25  # of the sequences that an engine decodes at once, how many it is sent
LATE = 2.0  # times as long as a request usually waits, from which on a copy is sent
LATE_S = 0.3  # and seconds more


def deal(stream: Stream, *, engines: int, capacity: int) -> list[GenerationRequest]:
    """Take the next requests of a batch for one engine; none where it has enough.

    Args:
        engines: that serve now.
        capacity: sequences that one engine decodes at once.
    """
    batch, owed = stream.batch, stream.owed
    if not batch.unsent or 2 * len(owed) > stream.share:
        return []
    if any(batch.is_suspect(request) for request in owed.values()):
        return []
    if batch.is_suspect(batch.unsent[0]):
        return [] if owed else [batch.unsent.popleft()]

    most = len(batch.unsent) if engines == 1 else math.ceil(len(batch.unsent) / (2 * engines))
    room = AHEAD * capacity - sum(request.sampling.n for request in owed.values())
    taken: list[GenerationRequest] = []
    while batch.unsent and len(taken) < most and not batch.is_suspect(batch.unsent[0]):
        room -= batch.unsent[0].sampling.n
        if room < 0 and (taken or owed):
            break
        taken.append(batch.unsent.popleft())
    return taken


def choose_copies(members: Sequence[Member], *, now: float) -> list[tuple[Member, Batch, list[GenerationRequest]]]:
    """Choose what idle engines sample a second time, since the engine that owes it is late.

    A request is late after `LATE` times the longest wait that is usual for one, and `LATE_S` more. Late ones are shared
    out evenly. Nothing is copied twice, and no suspect at all.

    Args:
        now: on the monotonic clock.
    """
    idle = [one for one in members if one.state == "serving" and not one.stream and not one.copies]
    waits = [one.longest_wait for one in members if one.longest_wait is not None]
    if not idle or not waits:
        return []
    patience = LATE * median_low(waits) + LATE_S
    by_batch: dict[int, tuple[Batch, list[GenerationRequest]]] = {}
    for one in members:
        if one.stream:
            late = list(_find_late(one.stream, now - patience))
            by_batch.setdefault(id(one.stream.batch), (one.stream.batch, []))[1].extend(late)

    chosen = []
    for batch, late in by_batch.values():
        if not idle:
            break
        share = math.ceil(len(late) / len(idle))
        parts = [late[start : start + share] for start in range(0, len(late), share or 1)]
        chosen += [(idle.pop(), batch, part) for part in parts[: len(idle)]]
    return chosen


def _find_late(stream: Stream, before: float) -> Iterator[GenerationRequest]:
    """Yield the requests that were sent before that moment, and that no other engine has."""
    batch = stream.batch
    for name, request in stream.owed.items():
        if stream.sent_at[name] < before and len(batch.holders[name]) == 1 and not batch.is_suspect(request):
            yield request
