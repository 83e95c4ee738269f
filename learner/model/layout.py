"""Who sees whom in a pack: every token its own prompt and, within its branch, what came before it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PROMPT = -1  # branch of a prompt's tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where one group lies in its pack: the prompt from `start` to `fork`, then its branches one after the other."""

    start: int
    fork: int
    ends: tuple[int, ...]  # of the branches; one without a token ends where it begins

    @property
    def end(self) -> int:
        return self.ends[-1] if self.ends else self.fork

    @property
    def branches(self) -> tuple[slice, ...]:
        """The branches that have tokens."""
        return tuple(slice(a, b) for a, b in pairwise((self.fork, *self.ends)) if b > a)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The groups of a pack in order, without a gap. A blank image at the end is a prompt without branches."""

    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """S."""
        return self.spans[-1].end


class Tokens(NamedTuple):
    """Of every token of a pack, (S,) int64 each: group, branch, and place in its own row, prompt included."""

    group: Tensor
    branch: Tensor
    place: Tensor

    def at(self, rows: slice) -> Tokens:
        return Tokens(*(tensor[rows] for tensor in self))


def tokens(layout: Layout, device: torch.device) -> Tokens:
    """Who each token is."""
    lengths, group, branch, first = [], [], [], []
    rows = 0
    for index, span in enumerate(layout.spans):
        parts = 1 + len(span.ends)
        lengths += [b - a for a, b in pairwise((span.start, span.fork, *span.ends))]
        group += [index] * parts
        branch += [PROMPT, *range(rows, rows + parts - 1)]
        first += [0] + [span.fork - span.start] * (parts - 1)
        rows += parts - 1
    count = np.array(lengths)
    within = np.arange(layout.size) - np.repeat(np.cumsum(count) - count, count)
    columns = (np.repeat(group, count), np.repeat(branch, count), np.repeat(first, count) + within)
    return Tokens(*(torch.from_numpy(column).to(device) for column in columns))


def block_mask(who: Tokens, *, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """(1, 1, S, S) added to the attention scores: 0 where query (third axis) may see key, else lowest. Additive,
    because a boolean mask is right in sdpa only.

    Args:
        who: tokens that follow each other, whole groups or branches.
        window: of a sliding layer: how many tokens of its own row, itself among them, a token sees.
    """
    seen = (who.group[:, None] == who.group) & ((who.branch == PROMPT) | (who.branch[:, None] == who.branch))
    seen = seen.tril()
    if window is not None:
        seen &= who.place[:, None] - who.place < window
    hidden = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=seen.device)
    return hidden.masked_fill_(seen, 0.0)[None, None]
