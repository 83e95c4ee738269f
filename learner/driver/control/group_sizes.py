"""How many completions each prompt is asked for, by what they may teach: adaptive G under a budget of completions.

The budget of a round of n prompts is n x G. A group teaches if it has a right and a wrong completion. With solve rate p
and k completions the chance of that is 1 - p^k - (1 - p)^k, and what is then learned is worth p (1 - p)^2: most for a
row that is sometimes right, least for one that always is. The sizes maximise the sum of chance times worth.

Source: Knapsack RL, Li et al. 2025, arXiv:2509.25849.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from common.config.schema import Config
from learner.driver.control.solve_rates import SolveRates

LEAST = 2  # completions that can be compared


def choose_group_sizes(rates: SolveRates, rows: Sequence[str], config: Config) -> list[int]:
    """Return the completions to ask for of each row of a round: G of each, or more and less under `signal`."""
    most, each = config.signal.max_group_size, config.rollout.group_size
    if most is None:
        return [each] * len(rows)
    return deal_completions(rates.estimate(rows), each * len(rows), most=most)


def deal_completions(rates: Sequence[float], budget: int, *, most: int) -> list[int]:
    """Return the size of each group, at least 2 and at most `most`; their sum is `budget`.

    Completions are dealt one by one to whoever gains most by one more. That is optimal, for each gains less than the
    one before. Rates of 0.5, 0.1 and 1, 12 completions and at most 8 give sizes 5, 5 and 2.
    """
    sizes = [LEAST] * len(rates)
    waiting = [(-find_gain(rate, LEAST), LEAST, index) for index, rate in enumerate(rates)]
    heapq.heapify(waiting)
    for _ in range(budget - LEAST * len(rates)):
        _, size, index = heapq.heappop(waiting)  # among equals the smallest group, then the first
        sizes[index] = size + 1
        if size + 1 < most:
            heapq.heappush(waiting, (-find_gain(rates[index], size + 1), size + 1, index))
    return sizes


def find_value(rate: float, size: int) -> float:
    """Return what a group of `size` completions of a row is worth: the chance that it teaches times how much."""
    return (1 - rate**size - (1 - rate) ** size) * rate * (1 - rate) ** 2


def find_gain(rate: float, size: int) -> float:
    """Return what one completion more than `size` adds to that: p^k (1 - p) + (1 - p)^k p more of the chance."""
    return (rate**size * (1 - rate) + (1 - rate) ** size * rate) * rate * (1 - rate) ** 2
