"""The rollout fleet: the only owner of engine handles. It routes, retries, replaces and loads weights.

An engine serves only while it is known to hold the current version. One that dies is replaced, and its replacement
joins when it has loaded that version; the groups it owed are sampled elsewhere, from the same seeds, so the tokens
are those the lost engine would have given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.config import Config
from common.errors import BrokenEngineError, EngineError
from common.placement import get
from common.types import FailedGroup, GenerationRequest, Group, WeightManifest
from rollout.engine import EngineInfo, EngineSpec, RolloutEngine


@dataclass(slots=True, eq=False)
class _Member:
    """An engine of the fleet."""

    id: str
    handle: Any
    joined: bool  # has served, or was there from the start; a replacement joins with its first load
    loading: Any = None  # the unresolved call that will make it serve
    deadline: float = 0.0


@dataclass(slots=True, eq=False)
class _Stream:
    """Groups on their way from one member."""

    member: _Member
    waiting: dict[str, GenerationRequest]
    deadline: float = field(default=0.0)


def engine_spec(config: Config, *, model_path: str, banned: tuple[int, ...]) -> EngineSpec:
    """What the configuration says of every engine."""
    rollout = config.rollout
    return EngineSpec(
        model_path=model_path,
        revision=config.model.revision,
        dtype=config.model.dtype,
        device=config.cluster.device,
        max_model_len=config.data.max_prompt_tokens + rollout.max_completion_tokens,
        max_sequences=rollout.max_sequences,
        kv_cache_bytes=None if rollout.kv_cache_mb is None else rollout.kv_cache_mb << 20,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        min_pixels=config.model.min_pixels,
        max_pixels=config.model.max_pixels,
        banned=banned,
        transport=config.weights.transport,
        threads=config.cluster.threads,
        cpus=rollout.cpus_per_engine,
        gpus=rollout.gpus_per_engine,
    )


class RolloutFleet:
    """N engines behind one door. Starting is asynchronous: `ready` waits."""

    def __init__(self, config: Config, spec: EngineSpec, *, on_event: Callable[..., None]) -> None:
        self._spec = spec
        self._start_timeout_s = config.rollout.start_timeout_s
        self._step_timeout_s = config.rollout.step_timeout_s
        self._load_timeout_s = config.weights.timeout_s
        self._max_restarts = config.rollout.max_restarts
        self._event = on_event
        self._manifest: WeightManifest | None = None
        self.copy_of_weights: Callable[[], WeightManifest] = self._no_copy
        self._spawned = 0
        self.restarts = 0
        self._members = [self._spawn(joined=True) for _ in range(config.rollout.engines)]

    # -- life --------------------------------------------------------------------------------------------------

    def ready(self) -> list[EngineInfo]:
        """Wait until every engine is up.

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
                got=str(error).strip().splitlines()[-1],
                remedy="the engine's own error is above and in Ray's worker logs; check model.dtype, memory and device",
            ) from error
        for info in infos:
            self._event("engine_up", engine=info.engine_id, pid=info.pid, seconds=round(info.startup_seconds, 2))
        return infos

    def close(self) -> None:
        """Kill every engine. Nothing of theirs outlives the call but seconds of process exit."""
        import ray

        for member in self._members:
            ray.kill(member.handle)
        self._members = []

    def _no_copy(self) -> WeightManifest:
        raise EngineError(
            "an engine came late and there is no copy of the weights for it",
            got="a version that was broadcast, and no `copy_of_weights`",
            remedy="this is a bug in Rollcall: the run sets it when it uses nccl",
        )

    def _spawn(self, *, joined: bool = False) -> _Member:
        import ray

        name = f"engine-{self._spawned}"
        self._spawned += 1
        actor = ray.remote(RolloutEngine).options(
            num_cpus=self._spec.cpus,
            num_gpus=self._spec.gpus,
            max_restarts=0,  # replacing is the fleet's work: only it knows which weights must be served
            runtime_env={"env_vars": self._spec.environment()},
        )
        return _Member(id=name, handle=actor.remote(self._spec, name), joined=joined)

    def _replace(self, member: _Member, why: str) -> None:
        """Kill what is left of a member and start another, which joins once it holds the current version.

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
        fresh = self._spawn()
        self._members[self._members.index(member)] = fresh
        self._send(fresh, grace_s=self._start_timeout_s)

    # -- weights -----------------------------------------------------------------------------------------------

    def serving(self) -> tuple[str, ...]:
        """Ids of the engines that hold the current version."""
        return tuple(member.id for member in self._serving())

    def join(self, init_info: Mapping[str, Any]) -> None:
        """Take every serving engine into the learner's NCCL group; `init_info` is vLLM's, for the first of them."""
        first = init_info["rank_offset"]
        calls = [
            member.handle.join.remote({**init_info, "rank_offset": first + index})
            for index, member in enumerate(self._serving())
        ]
        get(calls, what="the engines to join the learner's NCCL group", timeout_s=self._load_timeout_s)

    def load(self, manifest: WeightManifest, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Make every serving engine hold `manifest`; one that fails to is replaced.

        Returns when every engine that was serving holds it or is being replaced.

        Args:
            meanwhile: runs while the engines receive: the learner's half of a broadcast.

        Raises:
            EngineError: restarts are spent, or an engine refused the bytes.
        """
        self._manifest = manifest
        joining = [member for member in self._members if member.loading is not None]
        for member in self._members:
            self._send(member, grace_s=0.0 if member not in joining else self._start_timeout_s)
        meanwhile()
        while any(member.loading is not None and member not in joining for member in self._members):
            self._settle(joining)
        self._event("weights_loaded", version=manifest.version, engines=[member.id for member in self._serving()])

    def _send(self, member: _Member, *, grace_s: float) -> None:
        """Ask a member to load the current version (or just to come up, before there is one)."""
        if self._manifest is None:
            member.loading = member.handle.info.remote()
        else:  # an engine that came late is in no NCCL group: it gets the same weights as bytes
            late = self._manifest.by_nccl and not member.joined
            member.loading = member.handle.load.remote(self.copy_of_weights() if late else self._manifest)
        member.deadline = time.monotonic() + self._load_timeout_s + grace_s

    def _settle(self, besides: Sequence[_Member] = ()) -> None:
        """Wait for some loading member to serve, or replace it."""
        import ray

        loading = {member.loading: member for member in self._members if member.loading is not None}
        nearest = min(member.deadline for member in loading.values())
        done, _ = ray.wait(list(loading), num_returns=1, timeout=max(0.0, nearest - time.monotonic()))
        for ref in done:
            self._joined(loading[ref])
        if not done:
            late = [member for member in loading.values() if member.deadline <= time.monotonic()]
            for member in late:
                self._replace(member, f"did not load weights in {self._load_timeout_s:g} s")

    def _joined(self, member: _Member) -> None:
        """A member's load call has resolved: it serves, or is replaced."""
        import ray

        try:
            held = ray.get(member.loading, timeout=self._load_timeout_s)
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
            self._replace(member, _loss(error))
            return
        member.loading = None
        if not member.joined:
            member.joined = True
            self._event("engine_joined", engine=member.id, version=held)
        if self._manifest is not None and held != self._manifest.version:
            raise EngineError(
                f"engine {member.id} reports weights it was not given",
                got=f"version {held}, published {self._manifest.version}",
                remedy="this is a bug in Rollcall's fleet: report it with events.jsonl",
            )

    def versions(self) -> dict[str, int | None]:
        """What each engine says it serves."""
        import ray

        refs = {member.id: member.handle.version.remote() for member in self._members}
        return dict(zip(refs, ray.get(list(refs.values()), timeout=self._load_timeout_s), strict=True))

    def _serving(self) -> list[_Member]:
        return [member for member in self._members if member.loading is None]

    # -- sampling ----------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Group | FailedGroup]:
        """Sample every request exactly once and yield the groups as they finish, in no promised order.

        Raises:
            EngineError: engines died more often than `rollout.max_restarts`.
        """
        if len({request.prompt_id for request in requests}) != len(requests):
            raise ValueError("a batch holds one prompt twice")
        unsent = list(requests)
        streams: dict[Any, _Stream] = {}
        while unsent or streams:
            if unsent and self._serving():
                streams |= self._dispatch(unsent)
                unsent = []
            for source in self._wait(streams):
                stream = streams[source]
                try:
                    groups = self._advance(source, stream)
                except _LostError as lost:
                    unsent += _owed(streams, stream.member)
                    streams = {gen: one for gen, one in streams.items() if one.member is not stream.member}
                    self._replace(stream.member, lost.why)
                    break  # other ready streams may have been this member's too: look again
                if groups is None:
                    del streams[source]
                else:
                    yield from groups

    def _dispatch(self, requests: Sequence[GenerationRequest]) -> dict[Any, _Stream]:
        """Deal the requests evenly over the serving members, a contiguous run each."""
        assert self._manifest is not None, "weights are loaded before anything is sampled"
        members = self._serving()
        bounds = [len(requests) * index // len(members) for index in range(len(members) + 1)]
        streams = {}
        for member, start, stop in zip(members, bounds[:-1], bounds[1:], strict=True):
            share = list(requests[start:stop])
            if share:
                call = member.handle.generate.options(num_returns="streaming")
                source = call.remote(share, self._manifest.version)
                streams[source] = _Stream(member, {request.prompt_id: request for request in share}, self._step_limit())
        return streams

    def _step_limit(self) -> float:
        return time.monotonic() + self._step_timeout_s

    def _wait(self, streams: dict[Any, _Stream]) -> list[Any]:
        """Streams with something to read. Meanwhile replacements join, and silent engines are found out."""
        import ray

        loading = {member.loading: member for member in self._members if member.loading is not None}
        limits = [stream.deadline for stream in streams.values()] + [member.deadline for member in loading.values()]
        timeout = max(0.0, min(limits) - time.monotonic())
        ready, _ = ray.wait([*streams, *loading], num_returns=1, timeout=timeout, fetch_local=False)
        for ref in ready:
            if ref in loading:
                self._joined(loading[ref])
        if not ready:
            now = time.monotonic()
            for member in [member for member in loading.values() if member.deadline <= now]:
                self._replace(member, f"did not come back in {self._start_timeout_s:g} s")
            return [source for source, stream in streams.items() if stream.deadline <= now]
        return [source for source in ready if source in streams]

    def _advance(self, source: Any, stream: _Stream) -> tuple[Group | FailedGroup, ...] | None:
        """The next groups of a stream, None at its end; `_LostError` when its engine is dead or silent."""
        import ray

        if stream.deadline <= time.monotonic():
            raise _LostError(f"gave nothing for {self._step_timeout_s:g} s")
        try:
            groups: tuple[Group | FailedGroup, ...] = ray.get(next(source), timeout=self._step_timeout_s)
        except StopIteration:
            if stream.waiting:
                raise _LostError(f"ended its stream owing {len(stream.waiting)} groups") from None
            return None
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.RayTaskError) as error:
            raise _LostError(_loss(error)) from error
        for group in groups:
            del stream.waiting[group.prompt_id]
        stream.deadline = self._step_limit()
        return groups


class _LostError(Exception):
    """An engine can no longer be reached."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def _owed(streams: dict[Any, _Stream], member: _Member) -> list[GenerationRequest]:
    return [request for one in streams.values() if one.member is member for request in one.waiting.values()]


def _loss(error: BaseException) -> str:
    """Why an engine must be replaced, in words.

    Raises:
        Whatever the engine raised of its own that a replacement would raise too.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, BrokenEngineError):
        return str(cause.got)
    if isinstance(cause, Exception):
        raise cause from error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
