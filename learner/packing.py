"""Groups -> micro-batches under a token budget, dealt to ranks. Pure Python over lengths.

ZeRO's collectives pair up by order, so every rank runs the same number of packs: a rank that is short repeats the
cheapest group with weight 0. Order decides the last bits of a sum, so it is prompt order, whatever came in first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.types import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Micro:
    """One forward and backward of one rank."""

    groups: tuple[int, ...]  # indices into the step's groups, rising
    real: bool  # False: only there to keep the rank in step; its weight is 0


def packed_length(scored: ScoredGroup) -> int:
    """S, tokens the group takes in a pack: the prompt once, and every completion but its last token, which is only
    predicted."""
    return len(scored.prompt.token_ids) + sum(len(c.token_ids) - 1 for c in scored.group.completions)


def deal(lengths: Sequence[int], *, ranks: int, budget: int) -> tuple[tuple[Micro, ...], ...]:
    """The packs of each rank, equally many for all.

    Group i goes to rank i mod `ranks`; each rank packs its own in order, at most `budget` tokens a pack. A group that
    is larger stands alone: groups are never split. Raises ValueError when there is nothing to deal.
    """
    if not lengths:
        raise ValueError("a step needs at least one group")
    shares = [_fill(range(rank, len(lengths), ranks), lengths, budget) for rank in range(ranks)]
    most = max(len(share) for share in shares)
    filler = Micro(groups=(min(range(len(lengths)), key=lengths.__getitem__),), real=False)
    return tuple((*share, *[filler] * (most - len(share))) for share in shares)


def _fill(indices: Sequence[int], lengths: Sequence[int], budget: int) -> tuple[Micro, ...]:
    packs: list[list[int]] = []
    room = 0
    for index in indices:
        if not packs or lengths[index] > room:
            packs.append([])
            room = budget
        packs[-1].append(index)
        room -= lengths[index]
    return tuple(Micro(groups=tuple(pack), real=True) for pack in packs)
