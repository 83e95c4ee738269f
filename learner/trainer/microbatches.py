"""Deal groups to ranks, and pack them into micro-batches under a token budget. Pure Python over lengths and costs.

ZeRO's collectives pair up by order: every rank must run the same number of packs, and waits for the slowest. So ranks
get equal work, and a rank that would run fewer packs cuts one in two. Only a rank with too few groups repeats the
cheapest group, with weight 0. Packs are in prompt order, whatever came in first: order decides the last bits of a sum.

Five groups of 20, 15, 10, 10 and 10 tokens, two ranks, 30 tokens a pack:

    dearest first, to the rank with the least    rank 0: 0 3 (30 tokens)    rank 1: 1 2 4 (35)
    packed in prompt order                       rank 0: (0 3)              rank 1: (1 2) (4)
    rank 0 cuts one, to run as many              rank 0: (0) (3)            rank 1: (1 2) (4)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from common.config.schema import LearnerConfig
from common.types import ScoredGroup

VISION_TOKEN_COST = (
    1.5  # of one visual token: four patches through a tower of a third to half the language model's size
)
PAIRS_PER_TOKEN = 4000  # attending pairs that cost what the matrix products of one token do, from width 512 on


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatch:
    """One forward and backward of one rank."""

    groups: tuple[int, ...]  # indices into the groups of the step, rising
    real: bool  # False: a filler with weight 0, which keeps the rank in step with the others


def divide(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Divide a step into at most so many parts of nearly equal size, in order: 7 groups by 3 into 3, 2 and 2."""
    parts = min(parts, len(items))
    edges = [-(-len(items) * part // parts) for part in range(parts + 1)]
    return [items[first:last] for first, last in pairwise(edges)]


def count_positions(scored: ScoredGroup) -> int:
    """Count the positions a group takes in a pack: its prompt once, and every completion without its last token."""
    return len(scored.prompt.token_ids) + sum(len(c.token_ids) - 1 for c in scored.group.completions)


def estimate_cost(scored: ScoredGroup) -> float:
    """Estimate the work of a group in a pack, in tokens of the language model: positions, pictures and attention."""
    prompt, fed = len(scored.prompt.token_ids), [len(c.token_ids) - 1 for c in scored.group.completions]
    pairs = prompt * (prompt / 2 + sum(fed)) + sum(length**2 for length in fed) / 2
    visual = prompt - len(scored.prompt.text_ids)
    return count_positions(scored) + VISION_TOKEN_COST * visual + pairs / PAIRS_PER_TOKEN


def deal_groups(scored: Sequence[ScoredGroup], learner: LearnerConfig) -> tuple[tuple[Microbatch, ...], ...]:
    """Return the micro-batches of each rank; see `deal`."""
    lengths, costs = [count_positions(one) for one in scored], [estimate_cost(one) for one in scored]
    return deal(lengths, costs, ranks=learner.ranks, budget=learner.tokens_per_pack)


def deal(
    lengths: Sequence[int], costs: Sequence[float], *, ranks: int, budget: int
) -> tuple[tuple[Microbatch, ...], ...]:
    """Return the micro-batches of each rank, equally many for all.

    A group larger than `budget` tokens stands alone: groups are never split. Raises ValueError without groups.
    """
    if not lengths:
        raise ValueError("a step needs at least one group")

    # The dearest group first, each to the rank with the least to do.
    shares: list[list[int]] = [[] for _ in range(ranks)]
    totals = [0.0] * ranks
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        least = min(range(ranks), key=lambda rank: (totals[rank], len(shares[rank])))
        shares[least].append(index)
        totals[least] += costs[index]

    filled = [_fill_packs(sorted(share), lengths, budget) for share in shares]
    most = max(len(packs) for packs in filled)

    # As many packs for every rank: by cutting, then by fillers.
    filler = Microbatch(groups=(min(range(len(costs)), key=costs.__getitem__),), real=False)
    dealt = []
    for packs in filled:
        whole = _split_dearest(packs, costs, most)
        real = [Microbatch(groups=tuple(pack), real=True) for pack in whole]
        dealt.append((*real, *[filler] * (most - len(real))))
    return tuple(dealt)


def _fill_packs(indices: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack groups in order, each pack up to `budget` tokens."""
    packs: list[list[int]] = []
    room = 0
    for index in indices:
        if not packs or lengths[index] > room:
            packs.append([])
            room = budget
        packs[-1].append(index)
        room -= lengths[index]
    return packs


def _split_dearest(packs: list[list[int]], costs: Sequence[float], most: int) -> list[list[int]]:
    """Cut the dearest pack in two, again and again, until there are `most` packs or one a group."""
    packs = list(packs)
    while len(packs) < most and any(len(pack) > 1 for pack in packs):
        place = max(range(len(packs)), key=lambda place: (len(packs[place]) > 1, sum(costs[i] for i in packs[place])))
        pack = packs[place]
        total = sum(costs[i] for i in pack)
        at = min(range(1, len(pack)), key=lambda at: abs(2 * sum(costs[i] for i in pack[:at]) - total))
        packs[place : place + 1] = [pack[:at], pack[at:]]
    return packs
