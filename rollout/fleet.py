"""The rollout fleet, the only owner of engine handles: it starts, loads and replaces engines; `SamplingRound` samples.

An engine serves only while it is known to hold the current version. One that dies is replaced, and its replacement
joins when it has loaded that version.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.config.schema import Config
from common.errors import EngineError
from common.placement import find_cause, get, renew, schedule_in
from common.storage.output import Place, WriteReport
from common.types import FailedGroup, GenerationRequest, Group, LoadedWeights, WeightManifest
from rollout.engine import RolloutEngine
from rollout.sampling_round import Member, SamplingRound, explain_loss
from rollout.spec import EngineInfo, EngineSpec, make_engine_request

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

OWN_WEIGHTS = WeightManifest(version=0, buckets=(), vision_unchanged=True)  # the weights an engine started with


class RolloutFleet:
    """N engines as one. Starting is asynchronous: `ready` waits."""

    def __init__(
        self,
        config: Config,
        spec: EngineSpec,
        *,
        on_event: Callable[..., None],
        places: Sequence[PlacementGroup] | None = None,
    ) -> None:
        """Begin to start `config.rollout.engines` engines.

        Args:
            on_event: is told of each that joins, fails or loads.
            places: one of each engine; None: wherever Ray finds room.
        """
        self._spec = spec
        self._request = make_engine_request(config)
        self._start_timeout_s = config.rollout.start_timeout_s
        self.step_timeout_s = config.rollout.step_timeout_s
        self._load_timeout_s = config.weights.timeout_s
        self._max_restarts = config.rollout.max_restarts
        self._event = on_event
        self._manifest: WeightManifest | None = None
        self.copy_of_weights: Callable[[], WeightManifest] = self._no_copy
        self._spawned = 0
        self.restarts = 0
        self._members = [self._spawn(place, joined=True) for place in places or (None,) * config.rollout.engines]

    # -- starting and replacing --------------------------------------------------------------------------------

    def ready(self) -> list[EngineInfo]:
        """Wait until every engine is up, and return the facts of each.

        Raises:
            EngineError: an engine could not start (its own error is inside), or not in `start_timeout_s`.
        """
        import ray

        refs = [member.handle.info.remote() for member in self._members]
        try:
            infos: list[EngineInfo] = ray.get(refs, timeout=self._start_timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise EngineError(
                "the rollout engines did not start in time",
                got=f"not all of {len(refs)} up after {self._start_timeout_s:g} s",
                remedy="look at the engines' logs in Ray's session folder, or raise rollout.start_timeout_s",
            ) from error
        except ray.exceptions.RayActorError as error:
            raise EngineError(
                "a rollout engine could not start",
                got=find_cause(error),
                remedy="the engine's own error is above and in Ray's worker logs; check model.dtype, memory and device",
            ) from error
        for info in infos:
            self._event("engine_up", engine=info.engine_id, pid=info.pid, seconds=round(info.startup_seconds, 2))
        return infos

    def close(self) -> None:
        """Kill every engine, whose process exits within seconds, and give back its place: it may be a renewed one."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for member in self._members:
            ray.kill(member.handle)
            if member.place:
                remove_placement_group(member.place)
        self._members = []

    def _no_copy(self) -> WeightManifest:
        raise EngineError(
            "an engine came late and there is no copy of the weights for it",
            got="a version that was broadcast, and no `copy_of_weights`",
            remedy="this is a bug in Rollcall: the run sets it when it uses nccl",
        )

    def _spawn(self, place: PlacementGroup | None, *, joined: bool = False) -> Member:
        """Start an engine in an actor; `joined` for those that are there from the start."""
        import ray

        name = f"engine-{self._spawned}"
        self._spawned += 1
        actor = ray.remote(RolloutEngine).options(
            num_cpus=self._spec.cpus,
            num_gpus=self._spec.gpus,
            max_restarts=0,  # replacing is the fleet's work: only it knows which weights must be served
            scheduling_strategy=schedule_in(place),
            runtime_env={"env_vars": self._spec.environment()},
        )
        return Member(id=name, handle=actor.remote(self._spec, name), place=place, joined=joined)

    def replace(self, member: Member, why: str) -> None:
        """Kill what is left of an engine and start another, which joins once it holds the current version.

        Raises:
            EngineError: the run's budget of restarts is spent.
        """
        import ray

        ray.kill(member.handle)
        self._event("engine_lost", engine=member.id, why=why)
        if self.restarts >= self._max_restarts:
            raise EngineError(
                f"engine {member.id} is lost and the run's restarts are spent",
                got=f"{self.restarts} replaced before; this one: {why}",
                remedy="look at the engines' logs in Ray's session folder, or raise rollout.max_restarts",
            )
        self.restarts += 1
        fresh = self._spawn(member.place and renew(member.place, self._request))
        self._members[self._members.index(member)] = fresh
        self._send(fresh, grace_s=self._start_timeout_s)

    # -- weights -----------------------------------------------------------------------------------------------

    def serving(self) -> list[Member]:
        """Return the engines that hold the current version."""
        return [member for member in self._members if member.loading is None]

    def join(self, init_info: Mapping[str, Any]) -> None:
        """Take every serving engine into the learner's NCCL group; `init_info` is vLLM's, with the first one's rank."""
        first = init_info["rank_offset"]
        calls = [
            member.handle.join.remote({**init_info, "rank_offset": first + index})
            for index, member in enumerate(self.serving())
        ]
        get(calls, what="the engines to join the learner's NCCL group", timeout_s=self._load_timeout_s)

    def load(self, manifest: WeightManifest, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Make every serving engine hold `manifest`; one that fails is replaced.

        Return when every engine that was serving holds it, or its replacement does.

        Args:
            meanwhile: called while the engines receive: the learner's half of a broadcast.

        Raises:
            EngineError: restarts are spent, or an engine refused the bytes.
        """
        self._manifest = manifest
        # Engines that are still coming up get the new version too, but nobody waits for them.
        joining = [member for member in self._members if member.loading is not None]
        for member in self._members:
            self._send(member, grace_s=self._start_timeout_s if member in joining else 0.0)
        meanwhile()
        while any(member.loading is not None and member not in joining for member in self._members):
            self.wait({})
        self._event("weights_loaded", version=manifest.version, engines=[member.id for member in self.serving()])

    def _send(self, member: Member, *, grace_s: float) -> None:
        """Ask an engine to load the current version, or only to come up before there is one."""
        if self._manifest is None:
            member.loading = member.handle.info.remote()
        else:
            # An engine that came late is in no NCCL group: it gets the same weights as bytes.
            late = self._manifest.by_nccl and not member.joined
            member.loading = member.handle.load.remote(self.copy_of_weights() if late else self._manifest)
        member.deadline = time.monotonic() + self._load_timeout_s + grace_s

    def wait(self, sources: Mapping[Any, float]) -> list[Any]:
        """Wait for any of `sources`, or for an engine that is loading.

        Engines that have loaded serve from now on; those past their deadline are replaced.

        Args:
            sources: what Ray can wait for, each with its deadline on the monotonic clock.

        Returns:
            Sources that are ready, or past their deadline; none when an engine loaded or failed instead.
        """
        import ray

        # Until the first of all deadlines.
        loading = {member.loading: member for member in self._members if member.loading is not None}
        nearest = min([*sources.values(), *(member.deadline for member in loading.values())])
        timeout = max(0.0, nearest - time.monotonic())
        ready, _ = ray.wait([*sources, *loading], num_returns=1, timeout=timeout, fetch_local=False)

        for ref in ready:
            if ref in loading:
                self._finish_loading(loading[ref])
        if ready:
            return [ref for ref in ready if ref in sources]

        # Nothing is ready: somebody is late.
        now = time.monotonic()
        for member in [member for member in loading.values() if member.deadline <= now]:
            self.replace(member, f"was not up with its weights after {self._load_timeout_s:g} s")
        return [source for source, deadline in sources.items() if deadline <= now]

    def _finish_loading(self, member: Member) -> None:
        """Let an engine serve whose load call has resolved, or replace it.

        Raises:
            EngineError: it reports another version than it was given.
        """
        import ray

        try:
            answer: EngineInfo | LoadedWeights = ray.get(member.loading, timeout=self._load_timeout_s)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
            self.replace(member, explain_loss(error))
            return

        member.loading = None
        held = answer.version if isinstance(answer, LoadedWeights) else None  # it came up before there were weights
        if not member.joined:
            member.joined = True
            self._event("engine_joined", engine=member.id, version=held)
        if isinstance(answer, LoadedWeights) and answer.note:
            self._event("weights_load_slow", engine=member.id, why=answer.note)
        if self._manifest is not None and held != self._manifest.version:
            raise EngineError(
                f"engine {member.id} reports weights it was not given",
                got=f"version {held}, published {self._manifest.version}",
                remedy="this is a bug in Rollcall's fleet: report it with events.jsonl",
            )

    def versions(self) -> dict[str, int | None]:
        """Return the version that each engine says it serves, by engine."""
        calls = [member.handle.version.remote() for member in self._members]
        held = get(calls, what="the engines' versions", timeout_s=self._load_timeout_s)
        return {member.id: version for member, version in zip(self._members, held, strict=True)}

    # -- profiling ---------------------------------------------------------------------------------------------

    def start_profile(self) -> None:
        """Make every serving engine record what it does from now on."""
        calls = [member.handle.start_profile.remote() for member in self.serving()]
        get(calls, what="the engines to begin a profile", timeout_s=self._load_timeout_s)

    def stop_profile(self, place: Place) -> list[WriteReport]:
        """Make every serving engine write its record to `place`; one that came in between has none."""
        calls = [member.handle.stop_profile.remote(place) for member in self.serving()]
        return get(calls, what="the engines to write their profiles", timeout_s=self._load_timeout_s)

    # -- sampling ----------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The version of the weights that serving engines hold."""
        assert self._manifest is not None, "weights are loaded before anything is sampled"
        return self._manifest.version

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Group | FailedGroup]:
        """Sample every request exactly once and yield the groups as they finish, in no promised order.

        Raises:
            EngineError: engines died more often than `rollout.max_restarts`.
        """
        return SamplingRound(self, requests).groups()
