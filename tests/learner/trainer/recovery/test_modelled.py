"""Ranks without a model, in real Ray: whoever is killed or stopped, each change of their state is made exactly once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import ray

from common.config.schema import Config
from common.errors import LearnerError, LearnerLostError
from common.placement import get
from common.process import CONTROL
from learner.trainer.recovery.ring import MOST_FAILED_COPIES, RankRing
from learner.trainer.recovery.watch import RankInfo

pytestmark = pytest.mark.engine
WAIT_S = 60.0


class Rank:
    """Remembers what it was told."""

    def __init__(self, number: int) -> None:
        self._number, self._told = number, list[int]()
        self._copyable = True

    def open_store(self) -> None: ...

    def beat(self) -> None: ...

    def start(self, store: None) -> RankInfo:
        node = ray.get_runtime_context().get_node_id()
        return RankInfo(pid=os.getpid(), address="10.0.0.9", node=node, buckets=("changing",), vision_unchanged=False)

    def learn(self, number: int, *, die: int | None = None) -> list[int]:
        if die == self._number:
            os.kill(os.getpid(), signal.SIGKILL)
        self._told.append(number)
        return self._told

    def hang(self, rank: int, seconds: float) -> None:
        if rank == self._number:
            time.sleep(seconds)

    def fail(self, error: Exception) -> None:
        raise error

    def refuse_copies(self) -> None:
        self._copyable = False

    def copy_state(self) -> tuple[None, list[int]]:
        if not self._copyable:
            raise OSError("the store is full")
        return None, self._told

    def restore_state(self, *copies: list[int]) -> None:
        assert len(copies) == 1 + bool(self._number)
        self._told = list(copies[0])


class Ranks:
    """A ring of two ranks, and what it said."""

    def __init__(self, **keys: Any) -> None:
        keys = {"ranks": 2, "step_timeout_s": 30, "heartbeat_s": 3} | keys
        self.config = Config.model_validate({"learner": keys})
        self.events: list[dict[str, Any]] = []
        self.ups: list[dict[str, Any]] = []

        def spawn(rank: int, place: Any) -> Any:
            settings: dict[str, Any] = {"num_cpus": 0, "concurrency_groups": {CONTROL: 1}}
            return ray.remote(**settings)(Rank).remote(rank)

        self.ring = RankRing(
            self.config,
            spawn,
            place=None,
            renew=lambda place: place,
            on_event=self._note,
        )
        self.ring.ready(WAIT_S)

    def take(self, step: int, *, die: int | None = None) -> list[Any]:
        """A step of two changes. A rank dies in the second, the first time."""
        fatal = [die]
        self.ring.step = step

        def learn(ranks: Any) -> list[Any]:
            victim = fatal.pop() if fatal else None
            return [rank.learn.remote(2 * step + 1, die=victim) for rank in ranks]

        self.ring.change(lambda ranks: [rank.learn.remote(2 * step) for rank in ranks])
        self.ring.change(learn)
        return self.ring.settle(what="a step", timeout_s=self.config.learner.step_timeout_s)

    def ask(self, method: str, *args: Any) -> list[Any]:
        def work(ranks: Any) -> list[Any]:
            refs = [getattr(rank, method).remote(*args) for rank in ranks]
            return get(refs, what=method, timeout_s=self.config.learner.step_timeout_s)

        return self.ring.run(work)

    def _note(self, kind: str, **fields: Any) -> None:
        (self.ups if kind == "rank_up" else self.events).append({"kind": kind, **fields})

    def list_events(self, *keys: str) -> list[tuple[Any, ...]]:
        return [(one["kind"], *(one.get(key) for key in keys)) for one in self.events]


@pytest.fixture
def opened(ray_session: None) -> Iterator[list[Ranks]]:
    """Rings to close at the end."""
    made: list[Ranks] = []
    yield made
    for one in made:
        one.ring.close()


def make(opened: list[Ranks], **keys: Any) -> Ranks:
    opened.append(Ranks(**keys))
    return opened[-1]


@pytest.mark.parametrize("every", [1, 3])
def test_every_change_is_made_once_whoever_dies_in_which_step(opened: list[Ranks], every: int) -> None:
    ranks, draw = make(opened, keep_every=every), random.Random(every)
    for step in range(8):
        told = ranks.take(step, die=draw.choice([None, 0, 1]) if step else 0)
        assert told == [list(range(2 * step + 2))] * 2
        ranks.ring.keep()
    lost = [one for one in ranks.events if one["kind"] == "rank_lost"]
    assert len(lost) == ranks.ring.builds - 1 >= 3
    assert [one["rank"] for one in ranks.ups] == [0, 1] * ranks.ring.builds
    assert len({one["pid"] for one in ranks.ups}) == len(ranks.ups)
    rebuilt = [one["source"] for one in ranks.events if one["kind"] == "learner_rebuilt"]
    assert rebuilt[0] == "start" and set(rebuilt[1:]) <= ({"memory"} if every == 1 else {"start", "memory"})


def test_a_death_is_told_within_a_second_while_nobody_asks(opened: list[Ranks]) -> None:
    ranks = make(opened)
    ranks.take(0)
    ranks.ring.keep()
    time.sleep(1.0)  # the copy is whole; no answer is awaited
    victim = ranks.ring.infos[1].pid
    struck = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    while not ranks.events:
        assert time.monotonic() - struck < 30
        time.sleep(0.01)
    seconds = time.monotonic() - struck
    ((kind, rank, actor, node, step),) = ranks.list_events("rank", "actor", "node", "step")
    assert (kind, rank, actor, node, step) == ("rank_lost", 1, f"LearnerRank (pid {victim})", "10.0.0.9", 0)
    assert ranks.take(1) == [[0, 1, 2, 3]] * 2
    assert ranks.list_events("source")[1:] == [("learner_rebuilt", "memory")]
    assert seconds < 5, "noticed by the next call alone"  # within 1 s, on a machine that is not loaded


def test_a_rank_that_stands_still_is_named_at_its_heartbeat_long_before_the_deadline(opened: list[Ranks]) -> None:
    ranks = make(opened, step_timeout_s=600)
    ranks.take(0)
    stopped = ranks.ring.infos[1].pid
    os.kill(stopped, signal.SIGSTOP)
    assert ranks.take(1) == [[0, 1, 2, 3]] * 2
    assert ranks.list_events("rank", "why")[0] == ("rank_lost", 1, "gave no sign of life for 3 s")
    assert not psutil.pid_exists(stopped) or psutil.Process(stopped).status() in ("stopped", "zombie")


def test_a_rank_that_works_for_ever_is_named_at_the_deadline(opened: list[Ranks]) -> None:
    ranks = make(opened, step_timeout_s=4, max_restarts=0)
    ranks.ring.change(lambda them: [rank.hang.remote(1, 20.0) for rank in them])
    with pytest.raises(LearnerLostError, match=r"rank 1 of the learner on node 10\.0\.0\.9, is lost"):
        ranks.ring.settle(what="a learner step", timeout_s=4)
    assert ranks.list_events("rank", "why") == [("rank_lost", 1, "hangs: 1 of 2 still missing after 4 s")]


def test_too_many_losses_without_a_new_step_are_one_error(opened: list[Ranks]) -> None:
    """One more than `max_restarts`; a step in between begins the count anew."""
    ranks = make(opened, max_restarts=1)
    for step in range(3):
        ranks.take(step, die=1)
        ranks.ring.keep()
    ranks.ring.step = 3
    ranks.ring.change(lambda them: [rank.learn.remote(9, die=0) for rank in them])  # each time anew
    with pytest.raises(LearnerLostError, match="loss number 2 in a row") as caught:
        ranks.ring.settle(what="a step", timeout_s=WAIT_S)
    assert caught.value.final
    assert caught.value.actor.startswith("LearnerRank (pid ") and caught.value.node == "10.0.0.9"
    assert ranks.ring.builds == 1 + 3 + 1


@pytest.mark.parametrize("fault", ["refused", "none kept"])
def test_without_a_copy_the_loss_is_handed_on(opened: list[Ranks], fault: str) -> None:
    """The driver then goes back to a checkpoint, with ranks as they start."""
    ranks = make(opened, keep_every=0 if fault == "none kept" else 1)
    ranks.take(0)
    ranks.ring.keep()
    if fault == "refused":
        ranks.ask("refuse_copies")
        deadline = time.monotonic() + WAIT_S
        while len(ranks.events) < MOST_FAILED_COPIES and time.monotonic() < deadline:
            ranks.ring.keep()
            time.sleep(0.05)
    with pytest.raises(LearnerLostError) as caught:
        ranks.take(1, die=1)
    assert not caught.value.final
    failed = [one["why"] for one in ranks.events if one["kind"] == "copy_failed"]
    assert (len(failed), all("the store is full" in why for why in failed)) == ((3 if fault == "refused" else 0), True)
    ranks.ring.rebuild()
    assert ranks.take(0) == [[0, 1]] * 2


@pytest.mark.parametrize("error", [LearnerError("diverged", got=1, remedy="none"), ValueError("a bug")])
def test_an_error_of_a_rank_that_lives_is_no_loss(opened: list[Ranks], error: Exception) -> None:
    ranks = make(opened)
    with pytest.raises(type(error)):
        ranks.ask("fail", error)
    assert ranks.events == [] and ranks.ring.builds == 1
