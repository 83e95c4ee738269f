"""Laws of the stream: no row twice in a batch, none lost, and resumed = uninterrupted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.sources import ExampleSource, Outline
from common.data.stream import PromptStream, StreamState
from common.errors import DataError
from common.types import Example


class Rows:
    """So many rows and nothing behind them."""

    name = "rows"

    def __init__(self, count: int) -> None:
        self._count = count
        self.outlines = [Outline(id=str(row), problem="?", label="a", image_size=None) for row in range(count)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        return Example(id=str(index), problem="?", image=None, label="a", columns={})


def stream(rows: int, prompts: int, seed: int = 0) -> PromptStream:
    return PromptStream(cast(ExampleSource, Rows(rows)), seed=seed, prompts_per_step=prompts)


def take(source: PromptStream, batches: int) -> list[list[str]]:
    return [[example.id for example in source.next_batch()] for _ in range(batches)]


sizes = st.integers(1, 9).flatmap(lambda prompts: st.tuples(st.integers(prompts, 24), st.just(prompts)))


@given(sizes, st.integers(0, 30), st.integers(-5, 5))
def test_no_row_twice_in_a_batch_and_none_lost(size: tuple[int, int], batches: int, seed: int) -> None:
    rows, prompts = size
    source = stream(rows, prompts, seed)
    taken = take(source, batches)
    assert all(len(set(batch)) == prompts for batch in taken)
    state = source.state()
    seen = Counter(row for batch in taken for row in batch) + Counter(map(str, state.deferred))
    assert seen.total() == state.epoch * rows + state.position
    assert all(seen[str(row)] in (state.epoch, state.epoch + 1) for row in range(rows))
    assert len(state.deferred) < prompts


@given(sizes, st.integers(0, 12), st.integers(0, 12))
def test_resumed_is_uninterrupted(size: tuple[int, int], before: int, after: int) -> None:
    whole = stream(*size)
    take(whole, before)
    saved: dict[str, Any] = json.loads(json.dumps(asdict(whole.state())))
    resumed = stream(*size)
    take(resumed, 3)
    resumed.restore(StreamState(**saved))
    assert take(resumed, after) == take(whole, after)
    assert resumed.state() == whole.state()


def test_order_depends_on_seed_and_epoch_only() -> None:
    first = take(stream(8, 8), 3)
    assert first == take(stream(8, 8), 3) != take(stream(8, 8, seed=1), 3)
    assert len({tuple(batch) for batch in first}) == 3
    assert np.all(np.sort(np.array(first, dtype=int)) == np.arange(8))


def test_too_few_rows() -> None:
    with pytest.raises(DataError, match="fewer rows") as caught:
        stream(3, 4)
    assert caught.value.got == "3 rows, rollout.prompts_per_step = 4"


def test_a_state_of_other_data_is_refused() -> None:
    with pytest.raises(DataError, match="8 rows then, 9 now"):
        stream(9, 2).restore(stream(8, 2).state())
