"""Penalty for repeating a sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def repetition_reward(
    completions: Sequence[str], *, token_ids: Sequence[Sequence[int]], repetition_ngram: int, **columns: Any
) -> Sequence[float]:
    """Return (G,) minus the share of a completion's n-grams that stood in it before, n = `reward.repetition_ngram`.

    It is 0 where nothing recurs, and close to -1 in an endless loop. Tokens 1 2 3 1 2 3 have the 3-grams 123, 231, 312
    and 123, one of four for the second time: -0.25.
    """
    return [_penalty(tuple(ids), repetition_ngram) for ids in token_ids]


def _penalty(ids: tuple[int, ...], n: int) -> float:
    ngrams = [ids[start : start + n] for start in range(len(ids) - n + 1)]
    return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0
