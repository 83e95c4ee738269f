"""Where the groups of a pack lie, and which positions each of them may attend to.

Every position attends to its own prompt and, within its branch, to what stands before it. A group of a prompt of two
tokens and three completions of 2, 1 and 3 tokens (a completion's last token is only predicted, never fed), and a group
of a prompt of one token and one completion of 2 tokens, take S = 7 positions:

    position   0   1   2   3   4   5   6
    token      p0  p1  a0  c0  c1  q0  d0     prompts p and q; branches a, c and d; b has nothing to feed
    group      0   0   0   0   0   1   1
    branch    -1  -1   0   2   2  -1   3      counted through the pack; -1 is a prompt
    place      0   1   2   2   3   0   1      in a row of its own: the prompt, then the branch

    spans = (Span(start=0, fork=2, ends=(3, 3, 5)), Span(start=5, fork=6, ends=(7,)))

Position 4 (c1) attends to 0, 1, 3 and 4: its prompt and its branch, but neither branch a nor the second group.
"""

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
    """The positions of one group in its pack: the prompt from `start` to `fork`, then its branches one by one."""

    start: int
    fork: int
    ends: tuple[int, ...]  # of the branches; a branch without a token ends where it begins

    @property
    def end(self) -> int:
        """One past the last position of the group."""
        return self.ends[-1] if self.ends else self.fork

    @property
    def branches(self) -> tuple[slice, ...]:
        """The positions of each branch that has tokens."""
        return tuple(slice(a, b) for a, b in pairwise((self.fork, *self.ends)) if b > a)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The groups of a pack in order, without a gap. A blank picture at the end is a prompt without branches."""

    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """S, the positions of the pack."""
        return self.spans[-1].end


class Tokens(NamedTuple):
    """What each position of a pack belongs to, (S,) int64 each; see the table above."""

    group: Tensor
    branch: Tensor
    place: Tensor

    def at(self, rows: slice) -> Tokens:
        """Return the same of some positions."""
        return Tokens(*(tensor[rows] for tensor in self))


def index_tokens(layout: Layout, device: torch.device) -> Tokens:
    """Return group, branch and place of every position of a pack."""
    # One entry for each prompt and each branch, in the order of the pack.
    lengths, group, branch, first = [], [], [], []
    rows = 0
    for index, span in enumerate(layout.spans):
        parts = 1 + len(span.ends)
        lengths += [b - a for a, b in pairwise((span.start, span.fork, *span.ends))]
        group += [index] * parts
        branch += [PROMPT, *range(rows, rows + parts - 1)]
        first += [0] + [span.fork - span.start] * (parts - 1)  # place of its first token
        rows += parts - 1

    # Repeated for every token of the entry.
    count = np.array(lengths)
    within = np.arange(layout.size) - np.repeat(np.cumsum(count) - count, count)
    columns = (np.repeat(group, count), np.repeat(branch, count), np.repeat(first, count) + within)
    return Tokens(*(torch.from_numpy(column).to(device) for column in columns))


def make_block_mask(tokens: Tokens, *, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """Return the dense mask of some positions: (1, 1, S, S), queries along the third axis, keys along the fourth.

    It is added to the attention scores: 0 where the query may attend to the key, else the lowest number. A boolean
    mask would be right in sdpa only.

    Args:
        tokens: positions that follow each other: whole groups, or whole branches.
        window: of a sliding layer: the number of tokens of its own row that a token attends to, itself among them.
    """
    same_group = tokens.group[:, None] == tokens.group
    seen = same_group & ((tokens.branch == PROMPT) | (tokens.branch[:, None] == tokens.branch))
    seen = seen.tril()
    if window is not None:
        seen &= tokens.place[:, None] - tokens.place < window
    hidden = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=seen.device)
    return hidden.masked_fill_(seen, 0.0)[None, None]
