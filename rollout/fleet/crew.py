"""The engines of a fleet: who is started, who is replaced, who leaves, who is given up."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from common.errors import EngineError
from common.placement import find_node, list_draining_nodes, release, schedule_in
from common.process import CONTROL
from rollout.command_file import FleetState
from rollout.engine import RolloutEngine
from rollout.fleet.board import Board
from rollout.fleet.dealing import choose_copies
from rollout.fleet.finding import PlaceFinder
from rollout.fleet.life import finish_first, live
from rollout.fleet.losses import explain_loss, find_own_error
from rollout.fleet.member import LIFELINE, Member, State
from rollout.fleet.sizing import WantedSize, choose_leavers
from rollout.spec import EngineSpec, make_engine_request

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

TICK_S = 0.2  # between two looks for engines that are late, missing or too many
NOTICE_S = 1.0  # between two looks for nodes that are to go
LAST_S = 10.0  # before its node goes an engine leaves, even if none is there in its place


class Crew:
    """Keeps as many engines at work as are wanted."""

    def __init__(self, board: Board, spec: EngineSpec, *, kind: type = RolloutEngine) -> None:
        self._board, self._spec, self._kind = board, spec, kind
        self._finder = PlaceFinder(board, make_engine_request(board.config))
        self._reserves = False  # a place for each engine
        self.size = WantedSize(board.config.rollout, on_event=board.event)
        self._reached = self.size.engines  # that were there when last told
        self._given_up = 0  # places
        self.restarts = 0
        self._named = 0
        self._own_errors = 0  # raised by engines of their own, one after the other
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self, places: Sequence[PlacementGroup | None]) -> None:
        """Begin to start one engine in each place."""
        self._reserves = None not in places
        for place in places:
            self._board.members.append(self._begin(place))
        self._keep(self._hedge())
        self._keep(self._keep_size())
        self._keep(self._heed_notices())

    # -- how many ----------------------------------------------------------------------------------------------

    async def observe(self, wait_share: float) -> None:
        """Note which share of a step the learner waited for groups."""
        self.size.observe(wait_share, serving=len(self._board.serving()))

    async def command(self, text: str) -> None:
        """Follow what somebody wrote: a number of engines, or `auto`."""
        self.size.command(text)
        self._given_up = 0

    async def describe(self) -> FleetState:
        """Count the engines by what they do."""
        members = self._board.members
        return FleetState(
            command=self.size.read,
            refused=self.size.refused,
            wanted=self.size.engines,
            serving=len(self._board.serving()),
            starting=sum(one.state == "starting" and one.placed for one in members),
            waiting=sum(one.state == "starting" and not one.placed for one in members),
            draining=sum(one.state == "draining" for one in members),
        )

    async def _keep_size(self) -> None:
        """Let engines come where there are too few, and leave where there are too many."""
        while not self._closing:
            await asyncio.sleep(TICK_S)
            if self._board.failure is None:
                self._resize()

    def _resize(self) -> None:
        board, now = self._board, time.monotonic()
        there = [one for one in board.members if one.state in ("starting", "serving")]
        staying = [one for one in there if one.evicted_at is None]
        wanted = self.size.engines - self._given_up
        for _ in range(wanted - len(staying)):
            board.members.append(self._begin(None, joins=True))
        for member in choose_leavers(staying, len(staying) - wanted, now=now):
            self._drain(member)

        up = sum(one.state == "serving" for one in staying)
        for member in there:
            if member.evicted_at is not None:
                late = up and member.evicted_at - now < LAST_S
                if member.state == "starting" or up >= wanted or late:
                    self._drain(member)
        if up == self.size.engines == len(board.members) and up != self._reached:
            self._reached = up
            board.event("engines_reached", engines=up)

    def _drain(self, member: Member) -> None:
        """Let an engine leave: at once, or when it has answered what it owes."""
        member.state = "draining"
        member.settled.set()
        if member.stream or member.broadcast:
            self._board.attend(member)
            member.news.set()
        else:
            member.dismissed.set()

    async def _heed_notices(self) -> None:
        """Look for nodes that are to go. Their engines are replaced elsewhere first."""
        while not self._closing:
            await asyncio.sleep(NOTICE_S)
            found = await asyncio.to_thread(list_draining_nodes)
            for node, left in found.items():
                leaving = [one for one in self._board.members if one.node == node and one.evicted_at is None]
                for member in leaving:
                    member.evicted_at = math.inf if left is None else time.monotonic() + left
                if leaving:
                    self._board.event("node_draining", node=node, seconds=left, engines=[one.id for one in leaving])

    # -- one engine --------------------------------------------------------------------------------------------

    def _begin(self, place: PlacementGroup | None, *, fruitless: int = 0, joins: bool = False) -> Member:
        """Begin the life of an engine; one that joins has no place yet, or an old one that may be lost."""
        placed = not (joins and self._reserves)
        member = Member(id=f"engine-{self._named}", place=place, placed=placed, fruitless=fruitless)
        self._named += 1
        self._keep(self._see_through(member))
        return member

    async def _see_through(self, member: Member) -> None:
        """Start an engine and let it work; whatever ends it, leave nothing behind, and replace it where it is lost."""
        import ray

        place = None  # that nobody needs any more
        try:
            await finish_first(self._work(member), _await_dismissal(member))
        except Exception as error:  # noqa: BLE001  # whatever it is, the driver must hear of it
            place = self._lose(member, error)
        else:
            place = self._retire(member)
        finally:
            if member.handle is not None:
                ray.kill(member.handle)
        await self._board.tell()
        if place:
            await asyncio.to_thread(release, place)

    async def _work(self, member: Member) -> None:
        if not member.placed:
            await self._finder.find(member)
        elif member.place:
            member.node = await asyncio.to_thread(find_node, member.place)
        member.handle = self._spawn(member)
        await live(self._board, member)

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
        self._board.hand_back(member)
        self._enter(member, "retired")
        self._board.members.remove(member)
        self._board.event("engine_retired", engine=member.id, groups=member.served)
        return member.place

    def _lose(self, member: Member, error: BaseException) -> PlacementGroup | None:
        """Send again what a lost engine owed, and start another in its place, unless that is hopeless or not wanted.

        Returns a place that no engine takes any more.
        """
        board, why, own = self._board, explain_loss(error), find_own_error(error)
        leaves = member.state == "draining" or member.evicted_at is not None
        never_up = not any(one.info for one in board.members)
        self._enter(member, "lost")
        board.event("engine_lost", engine=member.id, why=why)
        suspected = board.take_back(member, why)
        at = board.members.index(member)
        if leaves:
            del board.members[at]
            return member.place

        fruitless = 0 if member.served else member.fruitless + (not suspected)
        if own is not None and (member.info or never_up):  # a host where none can start is no fault of the others
            self._own_errors += 1
        else:
            self._own_errors = 0
        if own is not None and (own is error or never_up or self._own_errors > 1):
            board.fail(own)
        elif fruitless <= board.config.rollout.max_restarts:
            self.restarts += 1
            board.members[at] = self._begin(member.place, fruitless=fruitless, joins=True)
            board.members[at].node = member.node
        else:
            del board.members[at]
            self._give_up(member, fruitless, why)
            return member.place
        return None

    def _give_up(self, member: Member, fruitless: int, why: str) -> None:
        """Go on without an engine in this place. The last one that is given up ends the run."""
        self._given_up += 1
        self._board.event("engine_given_up", engine=member.id, why=why)
        if not self._board.members:
            self._board.fail(
                EngineError(
                    f"no rollout engine is left: {member.id} was the last",
                    got=f"{fruitless} in its place were lost before they gave a group; the last: {why}",
                    remedy="look at the engines' logs, `logs/` of the run folder, or raise rollout.max_restarts",
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


async def _await_dismissal(member: Member) -> None:
    await member.dismissed.wait()
