"""Groups -> micro-batches under a token budget, dealt to ranks. Pure Python over lengths and costs.

ZeRO's collectives pair up by order, so every rank runs the same number of packs and waits for the slowest: ranks get
equal work, and one that would run fewer packs cuts one in two. Only a rank with too few groups repeats the cheapest
group with weight 0. Order decides the last bits of a sum, so it is prompt order, whatever came in first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.types import ScoredGroup

TOWER_COST = 1.5  # of one visual token: four patches through a tower of a third to half the language model's size
PAIRS_PER_TOKEN = 4000  # pairs of attending tokens that cost what one token's matrix products do: 512 wide and up


@dataclass(frozen=True, slots=True, kw_only=True)
class Micro:
    """One forward and backward of one rank."""

    groups: tuple[int, ...]  # indices into the step's groups, rising
    real: bool  # False: only there to keep the rank in step; its weight is 0


def packed_length(scored: ScoredGroup) -> int:
    """S, tokens the group takes in a pack: the prompt once, and every completion but its last token, which is only
    predicted."""
    return len(scored.prompt.token_ids) + sum(len(c.token_ids) - 1 for c in scored.group.completions)


def packed_cost(scored: ScoredGroup) -> float:
    """Work of the group in a pack, in tokens of the language model: its own, its pictures', and its attention's."""
    prompt, fed = len(scored.prompt.token_ids), [len(c.token_ids) - 1 for c in scored.group.completions]
    pairs = prompt * (prompt / 2 + sum(fed)) + sum(length**2 for length in fed) / 2
    visual = prompt - len(scored.prompt.text_ids)
    return packed_length(scored) + TOWER_COST * visual + pairs / PAIRS_PER_TOKEN


def deal(lengths: Sequence[int], costs: Sequence[float], *, ranks: int, budget: int) -> tuple[tuple[Micro, ...], ...]:
    """The packs of each rank, equally many for all.

    The dearest group first, each goes to the rank with the least to do; each rank packs its own in prompt order, at
    most `budget` tokens a pack. A group that is larger stands alone: groups are never split. Raises ValueError when
    there is nothing to deal.
    """
    if not lengths:
        raise ValueError("a step needs at least one group")
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        min(shares, key=lambda share: (sum(costs[i] for i in share), len(share))).append(index)
    filled = [_fill(sorted(share), lengths, budget) for share in shares]
    most = max(len(packs) for packs in filled)
    filler = Micro(groups=(min(range(len(costs)), key=costs.__getitem__),), real=False)
    dealt = []
    for packs in filled:
        whole = _split_dearest(packs, costs, most)
        real = [Micro(groups=tuple(pack), real=True) for pack in whole]
        dealt.append((*real, *[filler] * (most - len(real))))
    return tuple(dealt)


def _fill(indices: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
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
    """As many packs as `most`, or as there are groups: the dearest one is cut in two, again and again."""
    packs = list(packs)
    while len(packs) < most and any(len(pack) > 1 for pack in packs):
        place = max(range(len(packs)), key=lambda place: (len(packs[place]) > 1, sum(costs[i] for i in packs[place])))
        pack = packs[place]
        total = sum(costs[i] for i in pack)
        at = min(range(1, len(pack)), key=lambda at: abs(2 * sum(costs[i] for i in pack[:at]) - total))
        packs[place : place + 1] = [pack[:at], pack[at:]]
    return packs
