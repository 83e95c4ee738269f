"""Who each token of a pack is, and whom it may see."""

from __future__ import annotations

import torch

from learner.model.layout import PROMPT, Layout, Span, index_tokens, make_block_mask

TWO = Layout(spans=(Span(start=0, fork=2, ends=(3, 3, 5)), Span(start=5, fork=6, ends=(7,))))
CPU = torch.device("cpu")


def seen(window: int | None = None) -> list[str]:
    mask = make_block_mask(index_tokens(TWO, CPU), dtype=torch.float32, window=window)
    assert mask.shape == (1, 1, TWO.size, TWO.size)
    return ["".join("x" if score == 0 else "." for score in row) for row in mask[0, 0].tolist()]


def test_tokens_know_their_group_branch_and_place() -> None:
    group, branch, place = (column.tolist() for column in index_tokens(TWO, CPU))
    assert group == [0, 0, 0, 0, 0, 1, 1]
    assert branch == [PROMPT, PROMPT, 0, 2, 2, PROMPT, 3]
    assert place == [0, 1, 2, 2, 3, 0, 1]
    assert TWO.spans[0].branches == (slice(2, 3), slice(3, 5))


def test_a_token_sees_its_prompt_and_what_came_before_it_in_its_branch() -> None:
    assert seen() == ["x......", "xx.....", "xxx....", "xx.x...", "xx.xx..", ".....x.", ".....xx"]


def test_a_window_counts_along_the_row_not_the_pack() -> None:
    assert seen(window=2) == ["x......", "xx.....", ".xx....", ".x.x...", "...xx..", ".....x.", ".....xx"]
