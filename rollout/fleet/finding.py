"""Places for engines that come while a run is under way: asked for, waited for, and given back if nobody needs them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from common.capacity import PlaceRequest
from common.placement import GRANT_S, ask, find_node, release, renew
from rollout.fleet.board import Board
from rollout.fleet.member import Member
from rollout.fleet.patience import LostError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

LOOK_S = 0.5  # between two looks whether a place is granted
SHUN_S = 60.0  # for which a node that was lost is left out; Ray knows by then


class PlaceFinder:
    """Finds a place for one engine after the other. What waits for one is what an autoscaler sees."""

    def __init__(self, board: Board, request: PlaceRequest) -> None:
        self._board, self._request = board, request
        self._shunned: dict[str, float] = {}  # by node: until when, on the monotonic clock

    async def find(self, member: Member) -> None:
        """Give an engine a place of its own, its old one if it has one that is any good, and wait until it is granted.

        Nodes may join for as long as another engine has a place.

        Raises LostError after `rollout.start_timeout_s` in which none had.
        """
        if member.place is not None:
            old = member.place
            await self._take(member, partial(renew, old, self._request))
            if member.place is not old and member.node is not None:
                self._shunned[member.node] = time.monotonic() + SHUN_S
            if await self._wait(member):
                return
        choice = 0
        while True:
            await self._take(member, partial(ask, self._request, choice=choice, without=self._list_shunned()))
            if await self._wait(member):
                return
            choice = (choice + 1) % len(self._request.choices)

    async def _wait(self, member: Member) -> bool:
        """Return whether a place is granted, False once it is time to try nodes with other labels."""
        assert member.place is not None, "it was asked for"
        config = self._board.config
        alone, waited = 0.0, 0.0
        patience = max(config.cluster.wait_for_resources_s, GRANT_S)
        while (node := await asyncio.to_thread(find_node, member.place)) is None:
            await asyncio.sleep(LOOK_S)
            waited += LOOK_S
            alone = 0.0 if any(one.placed for one in self._board.members) else alone + LOOK_S
            if alone > config.rollout.start_timeout_s:
                raise LostError(f"found no place for {config.rollout.start_timeout_s:g} s")
            if waited > patience and len(self._request.choices) > 1:
                return False
        member.node, member.placed = node, True
        return True

    async def _take(self, member: Member, make: Callable[[], PlacementGroup]) -> None:
        """Let an engine have a new place instead of its old one; nothing is left reserved if it leaves meanwhile."""
        asked = asyncio.ensure_future(asyncio.to_thread(make))
        old = member.place
        try:
            member.place = await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(lambda done: None if done.exception() else release(done.result()))
            raise
        if old is not None and old is not member.place:
            await asyncio.to_thread(release, old)

    def _list_shunned(self) -> list[str]:
        now = time.monotonic()
        return [node for node, until in self._shunned.items() if until > now]
