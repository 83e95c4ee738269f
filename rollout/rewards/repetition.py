"""Penalty for saying the same thing again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def repetition_reward(
    completions: Sequence[str], *, token_ids: Sequence[Sequence[int]], repetition_ngram: int, **columns: Any
) -> Sequence[float]:
    """(G,) minus the share of a completion's n-grams of tokens that stood in it before, n = `reward.repetition_ngram`.

    0 where nothing recurs, as in a completion of fewer than n tokens; towards -1 in an endless loop.
    """
    return [_penalty(tuple(ids), repetition_ngram) for ids in token_ids]


def _penalty(ids: tuple[int, ...], n: int) -> float:
    ngrams = [ids[start : start + n] for start in range(len(ids) - n + 1)]
    return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0
