"""One batch ahead, and a checkpoint that does not count it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any, cast

import pytest

from common.data import feed as feeds
from common.data.feed import PromptFeed
from common.data.sources import Outline
from common.data.stream import PromptStream
from common.errors import DataError, DeadlineError
from common.models.prompts import PromptEncoder
from common.types import Example, Prompt


class Source:
    name = "rows"
    outlines = tuple(Outline(id=f"train/{row}", problem="?", label="a", image_size=None) for row in range(7))

    def __len__(self) -> int:
        return 7

    def __getitem__(self, row: int) -> Example:
        return Example(id=f"train/{row}", problem="?", image=None, label="a", columns={})


class Encoder:
    """Fails on one row."""

    def __init__(self, broken: str = "") -> None:
        self._broken = broken

    def encode(self, example: Example) -> Prompt:
        if example.id == self._broken:
            raise DataError(f"{example.id} cannot be a prompt", got="?", remedy="mend it")
        return Prompt(example=example, text_ids=(1,), token_ids=(1,), images=None)


def feed(broken: str = "", *, encoder: Any = None, timeout_s: float = 60.0) -> PromptFeed:
    stream = PromptStream(cast("Any", Source()), seed=1, prompts_per_step=3)
    return PromptFeed(stream, cast("PromptEncoder", encoder or Encoder(broken)), ahead=3, timeout_s=timeout_s)


def ids(found: PromptFeed, batches: int) -> list[list[str]]:
    return [[prompt.id for prompt, _ in found.take(3)] for _ in range(batches)]


def test_a_feed_gives_what_its_stream_gives() -> None:
    stream = PromptStream(cast("Any", Source()), seed=1, prompts_per_step=3)
    wanted = [[example.id for example in stream.read(stream.draw(3))] for _ in range(5)]
    with_ahead = feed()
    assert ids(with_ahead, 5) == wanted
    with_ahead.close()


def test_a_restored_feed_goes_on_after_the_batches_taken_not_after_the_one_ahead() -> None:
    whole, first, second = feed(), feed(), feed()
    wanted = ids(whole, 4)
    assert ids(first, 2) == wanted[:2]
    ids(second, 1)  # has one ahead, to be forgotten
    second.restore(first.state())
    assert ids(second, 2) == wanted[2:]
    for one in (whole, first, second):
        one.close()


def test_an_error_ahead_is_raised_when_its_batch_is_due() -> None:
    broken = ids(feed(), 2)[1][0]
    failing = feed(broken)
    assert len(failing.take(3)) == 3
    with pytest.raises(DataError, match=broken):
        failing.take(3)
    failing.close()


class Counting(Encoder):
    """Knows how often each row was encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.done = Counter[str]()

    def encode(self, example: Example) -> Prompt:
        self.done[example.id] += 1
        return super().encode(example)


def test_steps_of_varying_length_resume_and_encode_no_row_twice() -> None:
    """A step takes 3 prompts and then 2, 1 or no more, all different; the feed makes 3 ahead."""
    counting = Counting()
    whole, other = feed(encoder=counting), feed()
    for more in ((), (2,), (1, 1), (2, 2), (), (9,)):
        step: list[str] = []
        for count in (3, *more):
            first, second = (one.take(count, without=step) for one in (whole, other))
            assert [(prompt.id, epoch) for prompt, epoch in first] == [(prompt.id, epoch) for prompt, epoch in second]
            step += [prompt.id for prompt, _ in first]
        assert len(set(step)) == len(step) == min(7, 3 + sum(more))
        state, other = other.state(), feed()
        other.restore(state)
    taken = whole.state().epoch * 7 + whole.state().position - len(whole.state().deferred)
    assert counting.done.total() <= taken + 3
    whole.close()
    other.close()


def test_rows_that_come_to_be_unwanted_are_not_given_though_they_were_made_ahead() -> None:
    given = feed()
    ids(given, 1)
    state = given.state()
    coming = ids(given, 1)[0]
    given.restore(state)
    assert not {prompt.id for prompt, _ in given.take(3, wanted=lambda row, epoch: row not in coming)} & set(coming)
    given.close()


class Stuck:
    """A disk that has stopped answering."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def encode(self, example: Example) -> Prompt:
        self.released.wait(60)
        return Encoder().encode(example)


def test_a_stuck_disk_has_a_deadline_and_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "CLOSE_S", 0.1)
    stuck = Stuck()
    slow = feed(encoder=stuck, timeout_s=0.1)
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"the next prompts(.|\n)*data\.timeout_s"):
        slow.take(3)
    slow.close()
    assert time.monotonic() - began < 30
    stuck.released.set()


def test_the_deadline_of_reading_a_row_is_told_from_the_feeds_own() -> None:
    class Late:
        def encode(self, example: Example) -> Prompt:
            raise TimeoutError("the mount")

    late = feed(encoder=Late())
    with pytest.raises(TimeoutError, match="the mount"):
        late.take(3)
    late.close()
