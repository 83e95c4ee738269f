"""The ranks, which are built anew when one is lost, and then do again what they did since their state was last copied.

A copy is taken between two steps, and what the ranks are sent after it is kept until the next copy is whole:

    copy v7 | begin, learn, learn, finish | copy v8 | begin, learn   <- rank 1 dies
                                          | copy v8 | begin, learn   <- all ranks anew, and on

So neither engines nor driver notice more than the time it takes, and the bits are those of ranks left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from common.config.schema import Config
from common.errors import LearnerLostError
from common.placement import find_cause, get, wait
from learner.trainer.recovery.copies import FINISH_S, Copies
from learner.trainer.recovery.watch import RankInfo, RankLoss, RankWatch

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

MOST_FAILED_COPIES = 3  # in a row, after which what came since the last one is not kept

Value = TypeVar("Value")
Spawn = Callable[[int, "PlacementGroup | None"], Any]  # makes the actor of a rank in a bundle of a place
Send = Callable[[Sequence[Any]], Sequence[Any]]  # sends a call to each rank, and returns references of their answers


class RankRing:
    """All ranks, their losses and their recovery."""

    def __init__(
        self,
        config: Config,
        spawn: Spawn,
        *,
        place: PlacementGroup | None,
        renew: Callable[[PlacementGroup], PlacementGroup],
        on_event: Callable[..., None],
    ) -> None:
        """Start the ranks, and do not wait.

        Args:
            renew: returns a place on nodes that are there, for one whose node may be lost.
            on_event: is told of ranks that are lost and built anew, also by another thread.
        """
        self._config, self._spawn, self._renew, self._on_event = config, spawn, renew, on_event
        self._copies = Copies()
        self._changes: list[Send] | None = []  # since the newest copy, or the start; None: nobody knows all of them
        self._answers: Sequence[Any] = ()  # references, of all changes that were not waited for
        self._losses = 0  # in a row, without a step that had not been taken before
        self._farthest = -1  # step that was taken
        self._from_start = True  # without a copy, the changes are all since the ranks started
        self.step = 0  # that they are at
        self._failed_copies = 0  # in a row
        self.builds = 0  # times that all ranks were built
        self.place = place
        self._start()

    # -- calls ---------------------------------------------------------------------------------------------------

    def ready(self, timeout_s: float) -> None:
        """Wait until every rank holds its model. Raises DeadlineError, or what a rank raised."""
        self.run(lambda _: self._wait_for_start(timeout_s))
        self._copies.place([info.node for info in self.infos])

    def run(self, work: Callable[[Sequence[Any]], Value]) -> Value:
        """Return what `work` makes of the ranks, whose state it leaves alone. It is done again with ranks built anew.

        Raises:
            LearnerLostError: a rank is lost, and no copy in memory leads back to where it was.
        """
        while True:
            try:
                return work(self.ranks)
            except Exception as error:  # noqa: BLE001  # raised again unless a rank is lost
                self._recover(error)

    def change(self, send: Send) -> None:
        """Let the ranks do what changes their state. Return at once."""
        if self._changes is not None:
            self._changes.append(send)
        self._answers = [*self._answers, *send(self.ranks)]

    def settle(self, *, what: str, timeout_s: float) -> list[Any]:
        """Wait until all changes are done, and return what each rank answered to the last.

        A rank's own error is raised. What it refused then is not done again.
        """
        try:
            values = self.run(lambda _: get(self._answers, what=what, timeout_s=timeout_s))
        except Exception:
            if self._changes is not None and self._answers:
                del self._changes[-(len(self._answers) // len(self.ranks)) :]
            raise
        finally:
            self._answers = ()
        return values[-len(self.ranks) :]

    def count_progress(self) -> tuple[int, ...]:
        """Return what is another as soon as a rank gets on: builds, steps, and the packs of each rank."""
        return self.builds, self.step, *self._watch.packs

    # -- copies --------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Note that the ranks have taken a step, and begin to copy their state where that is due. Return at once."""
        if self.step > self._farthest:
            self._farthest, self._losses = self.step, 0
        every = self._config.learner.keep_every
        if not (every and self._config.learner.max_restarts):
            self._changes = None  # they would be kept for ever
            return
        if why := self._settle_copy():
            self._fail_copy(why)
        if (self.step + 1) % every == 0 and not self._copies.busy:
            self._copies.begin(self.ranks, changes=len(self._changes or ()))
            if self._changes is None:
                self._changes = []

    def _settle_copy(self, *, wait_s: float = 0.0) -> str | None:
        """Forget what came before the newest copy, if that is whole now. Return why it never will be, if so."""
        before = self._copies.newest
        why = self._copies.settle(wait_s=wait_s)
        if (newest := self._copies.newest) is not None and newest is not before and self._changes is not None:
            del self._changes[: newest.changes]
            self._from_start, self._failed_copies = False, 0
        return why

    def _fail_copy(self, why: str) -> None:
        """Go on with the copy before. After several failures what came since is too much to be kept."""
        self._on_event("copy_failed", why=why)
        self._failed_copies += 1
        if self._failed_copies == MOST_FAILED_COPIES:
            self._forget()
        self._copies.place([info.node for info in self.infos])  # a keeper may have died

    def _forget(self) -> None:
        """Hold neither a copy nor what was done since: until the next one only a checkpoint leads back."""
        self._copies.drop()
        self._changes, self._from_start = None, False

    # -- recovery ------------------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Build the ranks anew, as they are at the start of a run."""
        self._copies.drop()
        self._changes, self._answers, self._from_start, self.step = [], (), True, 0
        self._end()
        self._start()
        self.ready(self._config.learner.start_timeout_s)

    def _recover(self, error: Exception) -> None:
        """Bring the ranks back to where they were. Raises the error where none of them is lost."""
        began = time.monotonic()
        lost = self._take_loss(error)
        if lost is None:
            raise error
        self._settle_copy(wait_s=FINISH_S)  # it may have become whole before
        while self._changes is not None and (self._copies.newest or self._from_start):
            try:
                self._rebuild_where_it_was()
            except Exception as again:  # noqa: BLE001  # raised again, in one way or another
                error = again
                if (another := self._take_loss(again)) is None:
                    self._on_event("copy_failed", why=find_cause(again))
                    break
                lost = another
            else:
                self.tell_rebuilt("memory" if self._copies.newest else "start", began)
                return
        raise lost from error

    def tell_rebuilt(self, source: str, began: float) -> None:
        """Note that all ranks are back, with the state from `source`, since `began` on the monotonic clock."""
        self._on_event("learner_rebuilt", source=source, step=self.step, seconds=round(time.monotonic() - began, 2))

    def _take_loss(self, error: Exception) -> LearnerLostError | None:
        """Return which rank an error means; None where none is lost. Raises it if that is one loss too many."""
        loss = self._watch.explain(error, self._list_unfinished)
        if loss is None:
            return None
        self._losses += 1
        lost = self._describe(loss)
        if self._losses > self._config.learner.max_restarts:
            lost.final = True
            raise lost from error
        return lost

    def _rebuild_where_it_was(self) -> None:
        """Build the ranks anew, give them the newest copy, and let them do again what came after it."""
        timeout_s = self._config.learner.step_timeout_s
        self._end()
        self._start()
        self._wait_for_start(self._config.learner.start_timeout_s)
        if self._copies.newest:
            copies = self._copies.find()
            first = [copies[0]] if self._config.learner.zero_stage < 3 else []  # it holds what all read
            restored = [
                rank.restore_state.remote(copies[index], *(first if index else ()))
                for index, rank in enumerate(self.ranks)
            ]
            get(restored, what="the learner's state to be restored", timeout_s=timeout_s)
        self._copies.place([info.node for info in self.infos])
        again = [ref for send in self._changes or () for ref in send(self.ranks)]
        get(again, what="the last steps to be taken again", timeout_s=timeout_s)
        self._answers = again[-len(self._answers) :] if self._answers else ()

    def _start(self) -> None:
        self.builds += 1
        self.ranks = [self._spawn(rank, self.place) for rank in range(self._config.learner.ranks)]
        self.infos: list[RankInfo] = []
        # Ray hands a rank the value of a reference.
        store = self.ranks[0].open_store.remote()
        self._started = [rank.start.remote(store) for rank in self.ranks]
        silence_s = self._config.learner.heartbeat_s
        self._watch = RankWatch(self.ranks, silence_s=silence_s, on_loss=self._tell_loss)

    def _wait_for_start(self, timeout_s: float) -> None:
        self.infos = get(self._started, what="the learner's ranks to start", timeout_s=timeout_s)
        for rank, info in enumerate(self.infos):
            self._on_event("rank_up", rank=rank, pid=info.pid, node=info.address)

    def _end(self) -> None:
        """End the ranks that are left, and find a place for others."""
        self._kill()
        if self.place is not None:
            self.place = self._renew(self.place)

    def _tell_loss(self, loss: RankLoss) -> None:
        lost = self._describe(loss)
        self._on_event("rank_lost", rank=loss.rank, actor=lost.actor, node=lost.node, why=loss.why, step=self.step)

    def _describe(self, loss: RankLoss) -> LearnerLostError:
        info = self.infos[loss.rank] if self.infos else None
        actor, node = f"LearnerRank (pid {info.pid if info else 'unknown'})", info.address if info else "unknown"
        again = f", loss number {self._losses} in a row without a new step" if self._losses > 1 else ""
        return LearnerLostError(
            f"{actor}, rank {loss.rank} of the learner on node {node}, is lost{again}",
            got=loss.why,
            remedy="look in Ray's logs for who ended it, as for want of memory, and start again with resume=auto",
            actor=actor,
            node=node,
        )

    def _list_unfinished(self) -> list[int]:
        """Return the ranks that have not answered all changes, the one with the fewest answers first."""

        asked, ranks = list(self._answers), len(self.ranks)
        if not asked:
            return []
        answered = wait(asked, timeout_s=0)
        done = [sum(ref in answered for ref in asked[rank::ranks]) for rank in range(ranks)]
        return sorted((rank for rank in range(ranks) if done[rank] < len(asked) // ranks), key=done.__getitem__)

    def _kill(self) -> None:
        import ray

        self._watch.close()
        for rank in self.ranks:
            ray.kill(rank)

    def close(self) -> None:
        """End every rank, and give back their place: it may be a renewed one."""
        from ray.util.placement_group import remove_placement_group

        self._kill()
        self._copies.close()
        if self.place is not None:
            remove_placement_group(self.place)
