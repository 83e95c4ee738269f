"""Engines that run one after the other in one actor: vLLM is imported once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from common.config.schema import Config
from common.types import FailedGroup, GenerationRequest, Group, LoadedWeights, WeightManifest
from rollout.spec import EngineSpec
from tests.helpers.engines import generate

if TYPE_CHECKING:
    from rollout.engine import RolloutEngine


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
