"""The engines of a fleet: who is started, who is replaced, who is given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from common.errors import EngineError
from common.placement import renew, schedule_in
from rollout.engine import RolloutEngine
from rollout.fleet.board import Board
from rollout.fleet.dealing import choose_copies
from rollout.fleet.life import live
from rollout.fleet.losses import explain_loss, find_own_error
from rollout.fleet.member import CONTROL, LIFELINE, Member, State
from rollout.spec import EngineSpec, make_engine_request

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

TICK_S = 0.2  # between two looks for engines that are late


class Crew:
    """Keeps as many engines at work as are wanted."""

    def __init__(self, board: Board, spec: EngineSpec, *, kind: type = RolloutEngine) -> None:
        self._board, self._spec, self._kind = board, spec, kind
        self._request = make_engine_request(board.config)
        self.restarts = 0
        self._named = 0
        self._own_errors = 0  # raised by engines of their own, one after the other
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self, places: Sequence[PlacementGroup | None]) -> None:
        """Begin to start one engine in each place."""
        for place in places:
            self._board.members.append(self._begin(place))
        self._keep(self._hedge())

    def _begin(self, place: PlacementGroup | None, *, fruitless: int = 0, renewed: bool = False) -> Member:
        """Begin the life of an engine."""
        member = Member(id=f"engine-{self._named}", place=place, fruitless=fruitless)
        self._named += 1
        self._keep(self._see_through(member, renewed=renewed))
        return member

    async def _see_through(self, member: Member, *, renewed: bool) -> None:
        """Start an engine and let it work; whatever ends it, leave nothing behind, and replace it where it is lost."""
        import ray

        place = None  # that nobody needs any more
        try:
            if renewed and member.place:
                member.place = await asyncio.to_thread(renew, member.place, self._request)
            member.handle = self._spawn(member)
            await live(self._board, member)
        except Exception as error:  # noqa: BLE001  # whatever it is, the driver must hear of it
            place = self._lose(member, error)
        else:
            place = self._retire(member)
        finally:
            if member.handle is not None:
                ray.kill(member.handle)
        await self._board.tell()
        if place:
            await asyncio.to_thread(ray.util.remove_placement_group, place)

    def _spawn(self, member: Member) -> Any:
        import ray

        settings: dict[str, Any] = {
            "num_cpus": self._spec.cpus,
            "num_gpus": self._spec.gpus,
            "max_restarts": 0,  # replacing is the fleet's work: only it knows which weights must be served
            "concurrency_groups": {CONTROL: 1, LIFELINE: 1},
            "scheduling_strategy": schedule_in(member.place),
            "runtime_env": {"env_vars": self._spec.environment()},
        }
        actor: Any = ray.remote(**settings)(self._kind)
        return actor.remote(self._spec, member.id)

    def _retire(self, member: Member) -> PlacementGroup | None:
        """Let an engine go whose work is done. Return its place."""
        self._enter(member, "retired")
        self._board.members.remove(member)
        self._board.event("engine_retired", engine=member.id, groups=member.served)
        return member.place

    def _lose(self, member: Member, error: BaseException) -> PlacementGroup | None:
        """Send again what a lost engine owed, and start another in its place, unless that is hopeless.

        Returns a place that no engine takes any more.
        """
        board, why, own = self._board, explain_loss(error), find_own_error(error)
        never_up = not any(one.info for one in board.members)
        self._enter(member, "lost")
        board.event("engine_lost", engine=member.id, why=why)
        suspected = board.take_back(member, why)
        fruitless = 0 if member.served else member.fruitless + (not suspected)
        self._own_errors = 0 if own is None else self._own_errors + 1
        at = board.members.index(member)
        if own is not None and (own is error or never_up or self._own_errors > 1):
            board.fail(own)
        elif fruitless <= board.config.rollout.max_restarts:
            self.restarts += 1
            board.members[at] = self._begin(member.place, fruitless=fruitless, renewed=True)
        else:
            del board.members[at]
            self._give_up(member, fruitless, why)
            return member.place
        return None

    def _give_up(self, member: Member, fruitless: int, why: str) -> None:
        """Go on without an engine in this place. The last one that is given up ends the run."""
        self._board.event("engine_given_up", engine=member.id, why=why)
        if not self._board.members:
            self._board.fail(
                EngineError(
                    f"no rollout engine is left: {member.id} was the last",
                    got=f"{fruitless} in its place were lost before they gave a group; the last: {why}",
                    remedy="look at the engines' logs in Ray's session folder, or raise rollout.max_restarts",
                )
            )

    def _enter(self, member: Member, state: State) -> None:
        member.state = state
        member.settled.set()

    async def _hedge(self) -> None:
        """Look for engines that are late, and let idle ones sample what those owe."""
        while not self._closing:
            await asyncio.sleep(TICK_S)
            if self._board.batches:
                for helper, batch, copies in choose_copies(self._board.members, now=time.monotonic()):
                    helper.copies = (batch, copies)
                    helper.news.set()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the others; asyncio itself holds it too weakly."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> list[PlacementGroup]:
        """Kill every engine. Return the places they had, to be given back."""
        import ray

        self._closing = True
        members, self._board.members = self._board.members, []
        for member in members:
            if member.handle is not None:
                ray.kill(member.handle)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return [member.place for member in members if member.place]
