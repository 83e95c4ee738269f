"""Modelled engines: the real actor, its streams and its control thread, with a clock in place of vLLM.

Tokens follow from seed and version alone, as a real engine's do. What goes wrong is told by prompt id: with `poison` an
engine ends, with `spin` it hangs, with `fault` vLLM fails in a step, and `refused` it refuses.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray

from common.checksum import checksum, combine
from common.config.schema import Config
from common.errors import EngineError
from common.recorder import Recorder
from common.types import (
    Completion,
    FailedGroup,
    GenerationRequest,
    Group,
    ImageFeatures,
    LoadedWeights,
    Sampling,
    UnreadPicture,
    WeightBucket,
    WeightManifest,
)
from rollout.engine import RolloutEngine

ONE = Sampling(n=1, temperature=1.0, top_p=1.0, top_k=0, max_tokens=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """How a modelled engine behaves; it stands in for `EngineSpec`."""

    start_s: float = 0.0
    load_s: float = 0.0
    service_s: float = 0.002  # for a group; groups are served one after the other
    slow: dict[str, float] = field(default_factory=dict)  # engine -> times as slow
    stillborn: frozenset[str] = frozenset()  # engines that end while they start
    hangs: frozenset[str] = frozenset()  # engines that never come up
    raises: frozenset[str] = frozenset()  # engines whose code raises while they start
    stuck: frozenset[str] = frozenset()  # engines that wait in a broadcast without end
    forgetful: frozenset[str] = frozenset()  # engines that report another version than they were given
    clock_jumps: bool = False  # its wall clock jumps by hours, to and fro
    frozen: dict[str, int] = field(default_factory=dict)  # engine -> the load of it that never ends
    damaged: dict[str, int] = field(default_factory=dict)  # engine -> loads of it whose bytes arrive damaged
    cpus: float = 0.0
    gpus: float = 0.0

    def environment(self) -> dict[str, str]:
        """Return nothing: no library needs any."""
        return {}


def make_jumping_clock() -> Callable[[], float]:
    """Return a `time.time` that is hours ahead at one call, and hours behind at the next."""
    real, hours = time.time, itertools.cycle((6, -6))
    return lambda: real() + 3600 * next(hours)


class ModelledEngine(RolloutEngine):
    """Serves by the real `serve`; only vLLM's step is modelled."""

    def __init__(self, spec: Any, engine_id: str) -> None:
        started = time.monotonic()
        if spec.clock_jumps:
            time.time = make_jumping_clock()
        time.sleep(spec.start_s)
        if engine_id in spec.stillborn:
            os._exit(1)
        if engine_id in spec.hangs:
            time.sleep(3600)
        if engine_id in spec.raises:
            raise ValueError("this engine cannot be built")
        self._model: Model = spec
        self._id = engine_id
        self._waiting: list[str] = []
        self._llm = SimpleNamespace(llm_engine=SimpleNamespace(step=self._step, abort_request=self._forget))  # type: ignore[assignment]
        self._recorder = Recorder()
        self._loads = 0
        self._begin_serving()
        self._startup_seconds = time.monotonic() - started

    def load(self, manifest: WeightManifest) -> LoadedWeights:
        """Hold a version after a while, if its bytes are those that were published."""
        self._loads += 1
        found = [checksum(ray.get(one.payload)) if one.payload else one.xxh3 for one in manifest.buckets]
        if self._loads <= self._model.damaged.get(self._id, 0) or found != [one.xxh3 for one in manifest.buckets]:
            raise EngineError("a bucket arrived damaged", got="other bytes", remedy="publish them again")
        self._version = None
        hangs = manifest.by_nccl and self._id in self._model.stuck
        hangs = hangs or self._loads == self._model.frozen.get(self._id)
        time.sleep(3600 if hangs else self._model.load_s)
        self._version = manifest.version
        reported = manifest.version + (self._id in self._model.forgetful)
        return LoadedWeights(version=reported, note=None, checksum=combine(found))

    def join(self, init_info: Mapping[str, Any]) -> None:
        """Enter a group of nobody."""

    def _add(
        self, request_id: str, request: GenerationRequest, images: ImageFeatures | UnreadPicture | None
    ) -> str | None:
        if request.prompt_id.startswith("refused"):
            return "the engine refused the prompt: it is made to"
        self._waiting.append(request_id)
        return None

    def _forget(self, names: list[str]) -> None:
        self._waiting = [name for name in self._waiting if name not in names]

    def _step(self) -> list[Any]:
        """Serve the oldest request."""
        name = self._waiting.pop(0)
        prompt = self._running[name].prompt_id
        if prompt.startswith("poison"):
            os._exit(1)
        if prompt.startswith("spin"):
            time.sleep(3600)
        if prompt.startswith("fault"):
            raise RuntimeError("vLLM is made to fail")
        time.sleep(self._model.service_s * self._model.slow.get(self._id, 1.0))
        return [SimpleNamespace(finished=True, request_id=name)]

    def _make_group(self, request: GenerationRequest, output: Any) -> Group | FailedGroup:
        assert self._version is not None, "it serves"
        said = draw(request, self._version)
        return replace(said, engine_id=self._id)


def draw(request: GenerationRequest, version: int) -> Group:
    """Return the group that any modelled engine gives under a version."""
    completions = []
    for number in range(request.sampling.n):
        digest = hashlib.blake2b(f"{request.seed + number} {request.prompt_id} {version}".encode()).digest()
        ids, text = tuple(digest[:4]), digest.hex()[:8]
        completions.append(Completion(token_ids=ids, logprobs=(-0.5,) * 4, text=text, finish_reason="stop"))
    return Group(
        prompt_id=request.prompt_id,
        completions=tuple(completions),
        origin="sampled",
        seed=request.seed,
        engine_id=None,
        weights_version=version,
    )


def make_requests(count: int, *, names: dict[int, str] | None = None) -> list[GenerationRequest]:
    """Make requests of which some are named, and so misbehave."""
    return [
        GenerationRequest(
            prompt_id=(names or {}).get(number, f"train/{number}"),
            token_ids=(1, 2, 3),
            images=None,
            seed=number,
            sampling=ONE,
        )
        for number in range(count)
    ]


def make_manifest(version: int, *, by_nccl: bool = False, megabytes: float = 0.0) -> WeightManifest:
    """Make a manifest that a modelled engine takes, of so many MB that follow from the version."""
    buckets: tuple[WeightBucket, ...] = ()
    if by_nccl:
        buckets = (WeightBucket(entries=(), xxh3=0, payload=None, kind="changing"),)
    elif megabytes:
        arrays = [np.random.default_rng(version).bytes(int(megabytes * 1e6))]
        payload = ray.put(arrays)
        buckets = (WeightBucket(entries=(), xxh3=checksum(arrays), payload=payload, kind="changing"),)
    return WeightManifest(version=version, buckets=buckets, vision_unchanged=True)


def make_config(engines: int | dict[str, int], **rollout: Any) -> Config:
    """Return a configuration of so many engines."""
    return Config.model_validate(
        {
            "rollout": {"engines": engines, "gpus_per_engine": 0, "cpus_per_engine": 0, "start_timeout_s": 30}
            | rollout,
            "learner": {"gpus_per_rank": 0},
            "cluster": {"device": "cpu"},
        }
    )
