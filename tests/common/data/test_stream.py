"""Laws of the stream: no row twice in a batch, none lost, and resumed = uninterrupted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, count
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.sources import ExampleSource, Outline
from common.data.stream import PromptStream, StreamState, Visit
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


def take(source: PromptStream, batches: int, prompts: int) -> list[list[str]]:
    """The rows of so many steps."""
    return [[example.id for example in source.read(source.draw(prompts))] for _ in range(batches)]


sizes = st.integers(1, 9).flatmap(lambda prompts: st.tuples(st.integers(prompts, 24), st.just(prompts)))


@given(sizes, st.integers(0, 30), st.integers(-5, 5))
def test_no_row_twice_in_a_batch_and_none_lost(size: tuple[int, int], batches: int, seed: int) -> None:
    rows, prompts = size
    source = stream(rows, prompts, seed)
    taken = take(source, batches, prompts)
    assert all(len(set(batch)) == prompts for batch in taken)
    state = source.state()
    seen = Counter(row for batch in taken for row in batch) + Counter(str(visit.row) for visit in state.deferred)
    assert seen.total() == state.epoch * rows + state.position
    assert all(seen[str(row)] in (state.epoch, state.epoch + 1) for row in range(rows))
    assert len(state.deferred) < prompts
    assert state.epochs == pytest.approx(batches * prompts / rows)


@given(sizes, st.integers(0, 12), st.integers(0, 12))
def test_resumed_is_uninterrupted(size: tuple[int, int], before: int, after: int) -> None:
    whole = stream(*size)
    take(whole, before, size[1])
    saved: dict[str, Any] = json.loads(json.dumps(asdict(whole.state())))
    resumed = stream(*size)
    take(resumed, 3, size[1])
    resumed.restore(StreamState(**saved))
    assert take(resumed, after, size[1]) == take(whole, after, size[1])
    assert resumed.state() == whole.state()


def test_order_depends_on_seed_and_epoch_only() -> None:
    first = take(stream(8, 8), 3, 8)
    assert first == take(stream(8, 8), 3, 8) != take(stream(8, 8, seed=1), 3, 8)
    assert len({tuple(batch) for batch in first}) == 3
    assert np.all(np.sort(np.array(first, dtype=int)) == np.arange(8))


def test_too_few_rows() -> None:
    with pytest.raises(DataError, match="fewer rows") as caught:
        stream(3, 4)
    assert caught.value.got == "3 rows, rollout.prompts_per_step = 4"


def test_a_state_of_other_data_is_refused() -> None:
    with pytest.raises(DataError, match="8 rows then, 9 now"):
        stream(9, 2).restore(stream(8, 2).state())


def draw_naively(rows: int, prompts: int, batches: int, seed: int) -> Iterator[list[int]]:
    """What a stream drew when every step took P prompts, and no row was passed over."""
    orders = (np.random.default_rng([seed, epoch]).permutation(rows).tolist() for epoch in count())
    coming = chain.from_iterable(orders)
    deferred: list[int] = []
    for _ in range(batches):
        batch, deferred = deferred, []
        while len(batch) < prompts:
            row = next(coming)
            (deferred if row in batch else batch).append(row)
        yield batch


@given(sizes, st.integers(0, 30), st.integers(0, 5))
def test_steps_of_p_prompts_are_what_they_were(size: tuple[int, int], batches: int, seed: int) -> None:
    expected = [[str(row) for row in batch] for batch in draw_naively(*size, batches, seed)]
    assert take(stream(*size, seed), batches, size[1]) == expected


@given(sizes, st.lists(st.lists(st.integers(1, 5), max_size=5), max_size=12), st.integers(0, 5))
def test_a_step_that_asks_again_gets_other_rows_and_no_visit_is_lost(
    size: tuple[int, int], steps: list[list[int]], seed: int
) -> None:
    """Each step draws P prompts, then as many more as its list says: until the rows are spent."""
    rows, prompts = size
    source, seen = stream(rows, prompts, seed), Counter[int]()
    for more in steps:
        asked: list[Visit] = []
        for wanted in (prompts, *more):
            peeked, left = source.peek(wanted), rows - len(asked)
            drawn = source.draw(wanted, without={str(visit.row) for visit in asked})
            assert len(drawn) == min(wanted, left)
            assert asked or drawn == peeked
            asked += drawn
        assert len({visit.row for visit in asked}) == len(asked)
        seen.update(visit.row for visit in asked)
        state = source.state()
        everything = seen + Counter(visit.row for visit in state.deferred)
        assert everything.total() == state.epoch * rows + state.position
        assert all(everything[row] in (state.epoch, state.epoch + 1) for row in range(rows))
        restored = stream(rows, prompts, seed)
        restored.restore(StreamState(**json.loads(json.dumps(asdict(state)))))
        assert restored.peek(prompts) == source.peek(prompts)


@given(sizes, st.sets(st.integers(0, 23)), st.integers(0, 5))
def test_unwanted_rows_are_passed_over_unless_there_are_too_few_others(
    size: tuple[int, int], unwanted: set[int], seed: int
) -> None:
    rows, prompts = size
    source = stream(rows, prompts, seed)
    liked = set(range(rows)) - unwanted
    for _ in range(9):
        drawn = {visit.row for visit in source.draw(prompts, wanted=lambda row, epoch: int(row) in liked)}
        assert len(drawn) == prompts
        assert drawn <= liked or drawn >= liked


def test_a_deferred_row_that_is_wanted_no_more_is_passed_over() -> None:
    """The second epoch begins within a step, with a row that the step holds already."""
    source = next(one for one in (stream(3, 2, seed) for seed in range(99)) if source_defers(one))
    (visit,) = source.state().deferred
    drawn = source.draw(2, wanted=lambda row, epoch: row != str(visit.row))
    assert visit.row not in {one.row for one in drawn}
    assert visit not in source.state().deferred


def source_defers(source: PromptStream) -> bool:
    take(source, 2, 2)
    return bool(source.state().deferred)


def test_the_deferred_rows_of_an_older_checkpoint_are_of_its_epoch() -> None:
    state = StreamState(**json.loads('{"rows": 9, "epoch": 3, "position": 4, "deferred": [7, 2]}'))
    assert state.deferred == (Visit(7, 3), Visit(2, 3))
    assert state.epochs == pytest.approx(3 + 2 / 9)
