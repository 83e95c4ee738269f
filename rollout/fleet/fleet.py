"""The fleet as the driver calls it: ask for groups, take them, publish weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any

from common.config.schema import Config
from common.errors import DeadlineError, EngineError
from common.placement import get, release
from common.process import ActorView
from common.storage.output import Place, WriteReport
from common.types import FailedGroup, GenerationRequest, Group, WeightManifest
from rollout.command_file import CommandFile, FleetState
from rollout.engine import RolloutEngine
from rollout.fleet.batch import Batch, CopyRequest
from rollout.fleet.board import PING_S, Board, FleetLoad
from rollout.fleet.command_watcher import CommandWatcher
from rollout.fleet.crew import Crew
from rollout.fleet.member import Load
from rollout.fleet.thread import LOOK_S, LoopThread
from rollout.spec import EngineInfo, EngineSpec

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

OWN_WEIGHTS = WeightManifest(version=0, buckets=(), vision_unchanged=True)  # the weights an engine started with
CALL_S = 30.0  # for what the fleet's thread does at once


class RolloutFleet:
    """N engines as one. Starting is asynchronous: `ready` waits."""

    def __init__(
        self,
        config: Config,
        spec: EngineSpec,
        *,
        on_event: Callable[..., None],
        places: Sequence[PlacementGroup | None] | None = None,
        run_folder: Place | None = None,
        kind: type = RolloutEngine,
    ) -> None:
        """Begin to start `config.rollout.min_engines` engines.

        Args:
            on_event: is told of each that joins, fails or loads, by the fleet's thread.
            places: one of each engine; None: wherever Ray finds room.
            run_folder: where somebody may ask for another number of engines; None: nobody does.
            kind: of the actor.
        """
        self._config = config
        self._board = Board(config, on_event=on_event)
        self._crew = Crew(self._board, spec, kind=kind)
        self.copy_of_weights: Callable[[], WeightManifest] = self._no_copy
        self._thread = LoopThread("rollout fleet")
        places = places or (None,) * config.rollout.min_engines
        self._thread.call(self._crew.start(places), what="engines to start", timeout_s=CALL_S)
        self._watcher = CommandWatcher(CommandFile(run_folder), self._thread, self._crew) if run_folder else None

    # -- engines -----------------------------------------------------------------------------------------------

    def ready(self) -> list[EngineInfo]:
        """Wait until every engine is up or lost and at least one is up, and return the facts of those.

        Raises:
            EngineError: none could start (its own error is inside), or not in `rollout.start_timeout_s`.
        """
        timeout_s = self._config.rollout.start_timeout_s * (2 + self._config.rollout.max_restarts)
        members = self._thread.call(
            self._board.wait_until_up(), what="the rollout engines to start", timeout_s=timeout_s
        )
        return [member.info for member in members if member.info]

    @property
    def engines(self) -> list[str]:
        """The names of the engines that serve."""
        return [member.id for member in self._board.serving()]

    @property
    def restarts(self) -> int:
        """Engines that were replaced so far."""
        return self._crew.restarts

    def take_loads(self) -> list[Load]:
        """Return every load of weights by an engine since the last call, in order."""
        loads = self._board.loads
        return [loads.popleft() for _ in range(len(loads))]

    def versions(self) -> dict[str, int | None]:
        """Return the version that each engine says it holds, by engine."""
        members = self._board.serving()
        calls = [member.call("version") for member in members]
        held = get(calls, what="the engines' versions", timeout_s=self._config.weights.timeout_s)
        return {member.id: version for member, version in zip(members, held, strict=True)}

    def start_profile(self) -> None:
        """Make every engine record what it does from now on."""
        calls = [member.handle.start_profile.remote() for member in self._board.serving()]
        get(calls, what="the engines to begin a profile", timeout_s=self._config.weights.timeout_s)

    def stop_profile(self, place: Place) -> list[WriteReport]:
        """Make every engine write its record to `place`; one that came in between has none."""
        calls = [member.handle.stop_profile.remote(place) for member in self._board.serving()]
        return get(calls, what="the engines to write their profiles", timeout_s=self._config.weights.timeout_s)

    def observe(self, wait_share: float) -> None:
        """Tell which share of a step the learner waited for groups; more or fewer engines may follow from it."""
        self._thread.call(self._crew.observe(wait_share), what="a step to be noted", timeout_s=CALL_S)

    def scale(self, command: str) -> None:
        """Let a number of engines be there from now on, whatever the wait share says; `auto`: as that says."""
        self._thread.call(self._crew.command(command), what="a command to be followed", timeout_s=CALL_S)

    def describe(self) -> FleetState:
        """Count the engines by what they do."""
        return self._thread.call(self._crew.describe(), what="the engines to be counted", timeout_s=CALL_S)

    def measure_load(self) -> FleetLoad:
        """Count the groups that wait, and list the versions that engines hold."""
        return self._thread.call(self._board.measure_load(), what="the groups to be counted", timeout_s=CALL_S)

    def list_actors(self) -> list[ActorView]:
        """Return every engine that has a process. One that starts or does not hold the newest weights owes too."""
        newest = self._board.newest
        return [
            ActorView(name=one.id, actor=one.handle, owes=one.stream is not None or one.held is not newest)
            for one in list(self._board.members)
            if one.handle is not None
        ]

    def count_progress(self) -> object:
        """Return what is another as soon as an engine makes a step, answers, loads, comes or goes."""
        return [(one.id, one.state, one.served, one.steps, id(one.held)) for one in list(self._board.members)]

    def close(self) -> None:
        """Kill every engine, whose process exits within seconds, and give back its place: it may be a renewed one."""
        if self._watcher:
            self._watcher.close()
        with suppress(DeadlineError):
            for place in self._thread.call(self._crew.close(), what="the engines to be killed", timeout_s=CALL_S):
                release(place)
        self._thread.close()

    # -- weights -----------------------------------------------------------------------------------------------

    def list_responsive(self) -> list[str]:
        """Return the engines that could take part in a broadcast now. One that does not answer within 30 s is lost."""
        asked = self._board.list_responsive()
        return [one.id for one in self._thread.call(asked, what="signs of life", timeout_s=CALL_S + PING_S)]

    def join(self, init_info: Mapping[str, Any], engines: Sequence[str], *, timeout_s: float) -> None:
        """Take these engines into the learner's NCCL group; `init_info` is vLLM's, with the first one's rank.

        Raises DeadlineError, or Ray's own error, where one of them does not come.
        """
        first = init_info["rank_offset"]
        for member in self._board.members:
            member.grouped = member.id in engines
        members = [one for one in self._board.members if one.grouped]
        calls = [
            member.handle.join.remote({**init_info, "rank_offset": first + index})
            for index, member in enumerate(members)
        ]
        get(calls, what="the engines to join the learner's NCCL group", timeout_s=timeout_s)

    def broadcast(self, manifest: WeightManifest, send: Callable[[], bool]) -> bool:
        """Make weights the newest, and let the engines of the NCCL group receive them while the learner sends.

        Args:
            send: the learner's half; False: it was not done in time.

        Returns:
            False where nobody has them. Engines that wait in the broadcast are given up then.
        """
        self._thread.call(self._board.offer(manifest), what="weights to be offered", timeout_s=CALL_S)
        if not send():
            self.call_off(manifest.version)
            return False
        self._wait_until_held(manifest)
        return True

    def call_off(self, version: int) -> None:
        """Give up the engines that wait in a broadcast, and let no engine be in the NCCL group any more."""
        self._thread.call(self._board.call_off(version), what="a broadcast to be called off", timeout_s=CALL_S)

    def publish(self, manifest: WeightManifest) -> None:
        """Make weights the newest. Return once an engine holds them, or while batches wait that want older ones.

        Raises:
            EngineError: no engine is left.
        """
        self._thread.call(self._board.offer(manifest), what="weights to be offered", timeout_s=CALL_S)
        self._wait_until_held(manifest)

    def _wait_until_held(self, manifest: WeightManifest) -> None:
        timeout_s = self._config.weights.timeout_s + self._config.rollout.start_timeout_s
        held = self._board.wait_until_held(manifest)
        self._thread.call(held, what=f"an engine to hold version {manifest.version}", timeout_s=timeout_s)

    def _no_copy(self) -> WeightManifest:
        raise EngineError(
            "an engine came late and there is no copy of the weights for it",
            got="a version that was broadcast, and no `copy_of_weights`",
            remedy="this is a bug in Rollcall: the run sets it when it uses nccl",
        )

    # -- sampling ----------------------------------------------------------------------------------------------

    def ask(self, requests: Sequence[GenerationRequest]) -> Batch:
        """Let the engines begin to sample requests with the newest weights, and return at once."""
        assert self._board.newest is not None, "weights are published before anything is sampled"
        batch = Batch.of(requests, self._board.newest)
        if batch.open:
            self._thread.call(self._board.ask(batch), what="a batch to be asked", timeout_s=CALL_S)
        return batch

    def take(self, batch: Batch) -> Iterator[Group | FailedGroup]:
        """Yield the answers that were not taken yet, as they finish; engines go on meanwhile if nobody takes the next.

        Raises:
            EngineError: no engine is left.
        """
        while batch.taken < batch.size:
            answer = self._await_answer(batch)
            batch.taken += 1
            yield answer

    def _await_answer(self, batch: Batch) -> Group | FailedGroup:
        """Wait for as long as the fleet is at work: it notices engines that die or hang, and fails if none is left."""
        while True:
            try:
                answer = batch.next_answer(wait_s=LOOK_S)
            except Empty:
                self._thread.check()
                continue
            if isinstance(answer, BaseException):
                raise answer
            if not isinstance(answer, CopyRequest):
                return answer
            given = self._board.give_copy(answer.version, self.copy_of_weights())
            self._thread.call(given, what="a copy of the weights to be handed over", timeout_s=CALL_S)

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Group | FailedGroup]:
        """Sample every request exactly once with the newest weights, and yield the groups as they finish."""
        batch = self.ask(requests)
        try:
            yield from self.take(batch)
        finally:
            if batch.open:  # whoever took them left
                self.forget(batch)

    def forget(self, batch: Batch) -> None:
        """Sample no more of a batch: nobody waits for it."""
        self._thread.call(self._board.forget(batch), what="a batch to be forgotten", timeout_s=CALL_S)
