"""Engines that run one after the other in one actor: vLLM is imported once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from common.config.schema import Config
from common.types import FailedGroup, GenerationRequest, Group, LoadedWeights, Prompt, Sampling, WeightManifest
from rollout.exchange.messages import Outcome
from rollout.requests import request
from rollout.spec import EngineSpec
from tests.helpers.engines import generate

if TYPE_CHECKING:
    from rollout.engine import RolloutEngine
    from tests.helpers.policy import Policy


class Turns:
    """The actor."""

    _engine: RolloutEngine | None = None

    def start(self, spec: EngineSpec) -> None:
        """Build an engine in place of the one before."""
        from rollout.engine import RolloutEngine

        self._stop()
        self._engine = RolloutEngine(spec, "engine")

    def _stop(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        if self._engine is not None:
            self._engine._llm.llm_engine.engine_core.shutdown()  # noqa: SLF001
            self._engine = None
            cleanup_dist_env_and_memory()

    def load(self, manifest: WeightManifest) -> LoadedWeights:
        return self._running().load(manifest)

    def generate(self, requests: Sequence[GenerationRequest], version: int) -> list[Group | FailedGroup]:
        return [group for groups in generate(self._running(), requests, version) for group in groups]

    def generate_amid(
        self, requests: Sequence[GenerationRequest], version: int, updates: Mapping[int, WeightManifest]
    ) -> list[Outcome]:
        """Return all that comes of a stream which is sent newer weights once vLLM has taken so many steps."""
        engine = self._running()
        core: Any = engine._llm.llm_engine  # noqa: SLF001
        step, taken = core.step, count(1)

        def step_and_send() -> Any:
            outputs = step()
            if (number := next(taken)) in updates:
                engine.update(0, updates[number])
            return outputs

        core.step = step_and_send
        engine.submit(0, requests)
        engine.finish(0, len(requests))
        try:
            return [outcome for outcomes in engine.serve(version, 0) for outcome in outcomes]
        finally:
            core.step = step

    def find_packed(self) -> dict[str, bool]:
        """Return by layer whether its weight is packed."""
        from rollout.vllm_patches import multiply_alike
        from rollout.weight_loader import get_model

        model = get_model(self._running()._llm)  # noqa: SLF001
        linears = {name: layer.cpu_linear for name, layer in model.named_modules() if hasattr(layer, "cpu_linear")}
        return {name: linear is not multiply_alike for name, linear in linears.items()}

    def _running(self) -> RolloutEngine:
        assert self._engine is not None
        return self._engine


class Turn:
    """One engine of the actor, as `Policy` and the tests see it."""

    def __init__(self, actor: Any, spec: EngineSpec) -> None:
        self._actor = actor
        self.ask("start", spec)
        self.notes: list[str | None] = []

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method of the actor and return its answer."""
        return ray.get(getattr(self._actor, method).remote(*args), timeout=300)

    def publish(self, manifest: WeightManifest) -> None:
        loaded = self.ask("load", manifest)
        assert loaded.version == manifest.version
        self.notes.append(loaded.note)

    def generate_amid(
        self, requests: Sequence[GenerationRequest], version: int, updates: Mapping[int, WeightManifest]
    ) -> tuple[list[Group], list[Outcome]]:
        """Return the groups of a stream that is sent newer weights after so many steps, and what else came of it."""
        found = self.ask("generate_amid", requests, version, updates)
        groups = [one for one in found if isinstance(one, Group)]
        return sorted(groups, key=lambda group: group.prompt_id), [one for one in found if not isinstance(one, Group)]

    def generate(self, requests: Sequence[GenerationRequest], version: int) -> list[Group]:
        """Return the groups in the order of their prompts' ids."""
        found = self.ask("generate", requests, version)
        assert all(isinstance(group, Group) for group in found), found
        return sorted(found, key=lambda group: group.prompt_id)


def make_config(folder: Path) -> Config:
    """Return the configuration of such an engine, with the model of `folder`."""
    return Config.model_validate(
        {
            "model": {"path": str(folder), "dtype": "float32"},
            "data": {"max_prompt_tokens": 400},
            "rollout": {"max_completion_tokens": 16, "gpus_per_engine": 0, "cpus_per_engine": 0, "max_sequences": 32},
            "learner": {"gpus_per_rank": 0},
            "cluster": {"device": "cpu"},
        }
    )


def measure_amid_a_batch(
    policy: Policy,
    engine: Turn,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    steps: tuple[int, int] = (3, 6),
) -> float:
    """Law 1 token by token, where two newer versions come while a batch is sampled. Return the largest gap.

    Args:
        steps: of vLLM, after which they come.
    """
    requests = [request(prompt, sampling, seed=number) for number, prompt in enumerate(prompts)]
    policy.push(engine, 3)
    weights, updates = {3: policy.copy_weights()}, {}
    for version, step in zip((4, 5), steps, strict=True):
        policy.shake(version)
        weights[version], updates[step] = policy.copy_weights(), policy.sender().publish(version)
    groups, loads = engine.generate_amid(requests, 3, updates)
    assert [one.version for one in loads if isinstance(one, LoadedWeights)] == [4, 5] and len(loads) == 2
    completions = [one for group in groups for one in group.completions]
    assert {span.version for one in completions for span in one.spans} == {3, 4, 5}
    assert max(len(one.spans) for one in completions) > 1, "no completion is of several versions"
    return policy.gap_by_version(prompts, groups, sampling, weights)
