"""The newest copy of all ranks' state in memory, and the one that is being made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from common.errors import DeadlineError, RollcallError, describe_cause
from common.placement import find_cause, get, wait
from learner.trainer.recovery.keeper import start_keepers

FINISH_S = 10.0  # for a copy on its way when a rank is lost: what is not there then never comes


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A copy of every rank's state, taken between two changes of it."""

    done: Sequence[Any]  # references of calls: all answered, the copy is whole
    payloads: Sequence[Any]  # references of what `copy_rank` returned, in rank order; the driver owns them
    changes: int  # of the ranks' state, before it was taken


class Copies:
    """Makes copies one after the other, and keeps the newest whole one until the next is whole.

    The store of each node holds two at most. Where ranks are on several nodes, each copy is on two of them.
    """

    def __init__(self) -> None:
        self.newest: Copy | None = None
        self._coming: Copy | None = None
        self._keepers: list[Any] = []  # one of each rank, on another node

    @property
    def busy(self) -> bool:
        """Whether a copy is being made."""
        return self._coming is not None

    def place(self, nodes: Sequence[str]) -> None:
        """Let other nodes hold the copies of ranks on these, in rank order."""
        self.close()
        self._keepers = start_keepers(nodes)

    def begin(self, ranks: Sequence[Any], *, changes: int) -> None:
        """Begin to copy the state that the ranks have once they have done what they were sent so far."""
        calls = [rank.copy_state.options(num_returns=2).remote() for rank in ranks]
        done, payloads = [done for done, _ in calls], [payload for _, payload in calls]
        done += [keeper.hold.remote(rank, payloads[rank]) for rank, keeper in enumerate(self._keepers)]
        self._coming = Copy(done=done, payloads=payloads, changes=changes)

    def settle(self, *, wait_s: float = 0.0) -> str | None:
        """Make the copy that is being made the newest, if it is whole. Return why it never will be, if so.

        Args:
            wait_s: how long it may take to become whole; it is given up then. With 0 it goes on.
        """
        import ray

        if (coming := self._coming) is None:
            return None
        answered = wait(coming.done, timeout_s=wait_s)
        if len(answered) < len(coming.done) and not wait_s:
            return None
        self._coming = None
        if len(answered) < len(coming.done):
            return f"not whole after {wait_s:g} s"
        try:
            get(coming.done, what="a copy of the learner's state", timeout_s=FINISH_S)
        except RollcallError as error:
            return describe_cause(error)
        except ray.exceptions.RayError as error:
            return find_cause(error)
        self.newest = coming
        return None

    def drop(self) -> None:
        """Hold no copy any more."""
        self.newest = self._coming = None

    def find(self) -> Sequence[Any]:
        """Return references of the newest copy, in rank order: on other nodes where it is there."""
        import ray

        assert self.newest is not None
        found = list(self.newest.payloads)
        for rank, keeper in enumerate(self._keepers):
            done, payload = keeper.give.options(num_returns=2).remote(rank)
            with suppress(ray.exceptions.RayError, DeadlineError):  # that node is lost
                get([done], what="a copy of the learner's state", timeout_s=FINISH_S)
                found[rank] = payload
        return found

    def close(self) -> None:
        """End the keepers, and with them what only they hold."""
        import ray

        for keeper in set(self._keepers):
            ray.kill(keeper)
        self._keepers = []
