"""What a fleet has to do: batches of requests, and the newest weights.

Everything here runs in the loop of the fleet's thread, so nothing is locked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.config.schema import Config
from common.errors import EngineError
from common.types import FailedGroup, GenerationRequest, Group, LoadedWeights, WeightManifest
from rollout.exchange.messages import DamagedUpdate
from rollout.fleet.batch import Batch, CopyRequest
from rollout.fleet.dealing import deal
from rollout.fleet.member import Load, Member
from rollout.fleet.patience import wait_for

MOST_LOADS = 10_000  # that are kept for a driver that takes none


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLoad:
    """What a fleet has to do, in groups, and the weights its engines hold."""

    unsent: int  # wait for an engine
    sampling: int  # engines owe
    published: int | None  # the newest version; None: there are no weights yet
    held: Mapping[str, int]  # version, by engine that serves


PING_S = 30.0  # for an answer of an engine that has nothing to do


class Board:
    """Engines find here what to do next, and bring answers."""

    def __init__(self, config: Config, *, on_event: Callable[..., None]) -> None:
        self.config, self.event = config, on_event
        self.in_flight = config.rollout.update == "in_flight"
        self.members: list[Member] = []
        self.batches: list[Batch] = []  # those with open requests, the oldest first
        self.newest: WeightManifest | None = None  # weights
        self.slowest_load: float | None = None  # seconds, of engines that had weights before
        self.failure: BaseException | None = None  # what ended the fleet
        self.loads: deque[Load] = deque(maxlen=MOST_LOADS)  # since the driver last took them
        self._changed = asyncio.Condition()  # an engine came up, loaded or left
        # By version: weights that were broadcast, as bytes; None once no batch wants them any more.
        self._copies: dict[int, asyncio.Future[WeightManifest | None]] = {}
        self._told: WeightManifest | None = None  # those whose first load was an event

    def serving(self) -> list[Member]:
        """Return the engines that are up and stay."""
        return [one for one in self.members if one.state == "serving"]

    async def measure_load(self) -> FleetLoad:
        """Count the groups that wait, and list the versions that engines hold."""
        return FleetLoad(
            unsent=sum(len(batch.unsent) for batch in self.batches),
            sampling=sum(len(batch.open) - len(batch.unsent) for batch in self.batches),
            published=self.newest.version if self.newest else None,
            held={one.id: one.held.version for one in self.serving() if one.held},
        )

    # -- batches -----------------------------------------------------------------------------------------------

    async def ask(self, batch: Batch) -> None:
        """Let the engines begin with a batch. Raises what ended the fleet."""
        self.raise_failure()
        self.batches.append(batch)
        await self.tell()

    async def forget(self, batch: Batch) -> None:
        """Drop what is left of a batch: nobody waits for it any more."""
        batch.open.clear()
        batch.unsent.clear()
        for member in self.members:
            if member.stream and member.stream.batch is batch:
                self._cancel(member, list(member.stream.owed))
        self._close_batches()
        await self.tell()

    def deal(self, member: Member) -> list[GenerationRequest]:
        """Take the next requests of its batch for an engine; none where it has enough or leaves."""
        assert member.stream is not None, "requests travel on a stream"
        if member.state != "serving":
            return []
        return deal(member.stream, engines=len(self.serving()), capacity=self.config.rollout.max_sequences)

    def note_sent(self, member: Member, requests: Sequence[GenerationRequest]) -> None:
        """Note that an engine is sent requests of the batch that it samples."""
        stream, now = member.stream, time.monotonic()
        assert stream is not None, "requests travel on a stream"
        stream.share = len(requests)
        stream.sent += len(requests)
        for request in requests:
            stream.owed[request.prompt_id] = request
            stream.sent_at[request.prompt_id] = now
            stream.batch.holders.setdefault(request.prompt_id, []).append(member.id)

    def attend(self, member: Member) -> None:
        """Send an engine the next requests of its batch. Without any, let its stream end once nothing is owed."""
        stream = member.stream
        if stream is None or stream.ending:
            return
        if share := self.deal(member):
            self.note_sent(member, share)
            member.call("submit", stream.number, tuple(share))
        elif not stream.owed:
            stream.ending = True
            member.call("finish", stream.number, stream.sent)

    def answer(self, member: Member, outcome: Group | FailedGroup) -> None:
        """Take an answer of an engine, and let no other engine go on with it."""
        stream = member.stream
        assert stream is not None, "answers travel on a stream"
        if stream.owed.pop(outcome.prompt_id, None) is None:
            return  # the copy of another engine came first
        member.heard = time.monotonic()
        member.served += 1
        waited = member.heard - stream.sent_at.pop(outcome.prompt_id)
        member.longest_wait = max(member.longest_wait or 0.0, waited)
        stream.batch.answer(outcome)
        holders = stream.batch.holders.pop(outcome.prompt_id)
        if holders != [member.id]:
            for other in self.members:
                if other is not member and other.id in holders:
                    self._cancel(other, [outcome.prompt_id])
        if not stream.batch.open:
            self._close_batches()

    def take_back(self, member: Member, why: str) -> bool:
        """Send again what a lost engine owed. Return whether a request is suspected of the loss."""
        stream, member.stream = member.stream, None
        if stream is None:
            return False
        for name in stream.owed:
            stream.batch.holders[name].remove(member.id)
        suspected = stream.batch.take_back(list(stream.owed.values()), why)
        if not stream.batch.open:
            self._close_batches()
        return suspected

    def hand_back(self, member: Member) -> None:
        """Let others sample what an engine owes that leaves."""
        stream, member.stream = member.stream, None
        if stream is not None:
            for name in stream.owed:
                stream.batch.holders[name].remove(member.id)
            stream.batch.put_back(stream.owed.values())

    def _cancel(self, member: Member, prompt_ids: Sequence[str]) -> None:
        """Let an engine drop requests that nobody waits for any more."""
        stream = member.stream
        assert stream is not None, "it owes them"
        for name in prompt_ids:
            del stream.owed[name], stream.sent_at[name]
        member.call("cancel", stream.number, tuple(prompt_ids))
        self.attend(member)

    def _close_batches(self) -> None:
        """Let go of batches without open requests, and of the weights that only they wanted."""
        self.batches = [batch for batch in self.batches if batch.open]
        wanted = {batch.weights.version for batch in self.batches}
        for version in self._copies.keys() - wanted:
            copy = self._copies.pop(version)
            if not copy.done():
                copy.set_result(None)

    # -- weights -----------------------------------------------------------------------------------------------

    async def offer(self, manifest: WeightManifest) -> None:
        """Make a version the newest. Every engine of the learner's NCCL group takes part in a broadcast of it."""
        self.raise_failure()
        self.newest = manifest
        for member in self.serving():
            if manifest.by_nccl:
                member.broadcast = manifest if member.grouped else None
            self.update(member)
        await self.tell()

    def choose_weights(self, batch: Batch) -> WeightManifest:
        """Return the weights that an engine which begins with a batch is to hold: its own, in flight the newest."""
        return self.newest if self.in_flight and self.newest else batch.weights

    def update(self, member: Member) -> None:
        """Send an engine the newest weights amid its batch, under `rollout.update = in_flight`."""
        stream, newest = member.stream, self.newest
        if not self.in_flight or stream is None or stream.ending or newest is None or newest is member.held:
            return
        if newest.version not in stream.updates:
            stream.updates[newest.version] = newest
            member.call("update", stream.number, newest)

    async def note_update(self, member: Member, answer: LoadedWeights | DamagedUpdate) -> None:
        """Note what became of weights that an engine was sent amid its batch.

        Raises EngineError where it holds others than it was sent.
        """
        stream = member.stream
        assert stream is not None, "updates travel on a stream"
        sent = stream.updates.get(answer.version)
        stream.updates = {version: one for version, one in stream.updates.items() if version > answer.version}
        if isinstance(answer, DamagedUpdate):
            self.event("weights_damaged", engine=member.id, version=answer.version, why=answer.why)
            return
        if sent is None:
            raise make_foreign_error(member, answer.version, "none of the versions it was sent")
        if answer.note:
            self.event("weights_load_slow", engine=member.id, why=answer.note)
        member.held, member.checksum = sent, answer.checksum
        await self.report_load(member)

    async def list_responsive(self) -> list[Member]:
        """Return the engines that could take part in a broadcast now. One that does not answer is given up.

        A broadcast waits for all of its members, and so for one that is dead or hangs without anybody's knowing.
        """
        members = self.serving()
        asked = [wait_for(one.handle.info.remote(), PING_S, "gave no sign of life") for one in members]
        for member, answer in zip(members, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(answer, BaseException):
                member.condemn(str(answer) or type(answer).__name__)
        return [one for one in members if not one.condemned.is_set() and one.state == "serving"]

    async def call_off(self, version: int) -> None:
        """Give up the engines that still wait in a broadcast: nobody can free them from it."""
        for member in self.members:
            member.grouped = False
            if member.broadcast is not None and member.broadcast.version == version:
                member.condemn(f"the broadcast of version {version} was called off")

    async def wait_until_held(self, weights: WeightManifest) -> None:
        """Wait until an engine holds these weights, or while there are batches of older ones to sample first."""

        def is_held() -> bool:
            if any(batch.weights is not weights for batch in self.batches):
                return True
            return any(member.held is weights for member in self.members)

        async with self._changed:
            await self._changed.wait_for(lambda: self.failure or is_held())
        self.raise_failure()

    async def get_copy(self, version: int) -> WeightManifest | None:
        """Return weights that were broadcast, as bytes, for an engine that came later. The driver makes them.

        Returns None where the batch that wants them is done meanwhile.
        """
        wanting = [batch for batch in self.batches if batch.weights.version == version]
        if not wanting:
            return None
        if version not in self._copies:
            self._copies[version] = asyncio.get_running_loop().create_future()
            wanting[0].answers.put(CopyRequest(version))
        return await asyncio.shield(self._copies[version])

    async def give_copy(self, version: int, manifest: WeightManifest) -> None:
        """Hand over what `get_copy` waits for."""
        if version in self._copies and not self._copies[version].done():
            self._copies[version].set_result(manifest)

    async def report_load(self, member: Member) -> None:
        """Note that an engine holds other weights."""
        if member.held is not None:
            self.loads.append(Load(member.id, member.held.version, member.checksum))
        if member.held is not None and member.held is not self._told:
            self._told = member.held
            self.event("weights_loaded", version=member.held.version, engine=member.id)
        await self.tell()

    # -- news --------------------------------------------------------------------------------------------------

    async def tell(self) -> None:
        """Wake everybody who waits for something to do, or for an engine to be up or to hold a version."""
        for member in self.members:
            member.news.set()
        async with self._changed:
            self._changed.notify_all()

    async def wait_until_up(self) -> list[Member]:
        """Return the engines that serve, once each that has a place now is up or lost, and at least one is up."""
        await asyncio.gather(*(one.settled.wait() for one in self.members if one.placed))
        async with self._changed:
            await self._changed.wait_for(lambda: self.failure or self.serving())
        self.raise_failure()
        return self.serving()

    def fail(self, error: BaseException) -> None:
        """End the fleet: whoever waits for it gets the error."""
        self.failure = self.failure or error
        for batch in self.batches:
            batch.answers.put(self.failure)
        for member in self.members:
            member.settled.set()

    def raise_failure(self) -> None:
        """Raise what ended the fleet, if anything did."""
        if self.failure:
            raise self.failure


def make_foreign_error(member: Member, version: int, given: str) -> EngineError:
    """Make the error of an engine that holds weights which nobody gave it."""
    return EngineError(
        f"engine {member.id} reports weights it was not given",
        got=f"version {version}, {given}",
        remedy="this is a bug in Rollcall's fleet: report it with events.jsonl",
    )
