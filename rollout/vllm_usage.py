"""What vLLM's scheduler has to do: its own queues, its KV cache, its preemptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from common.telemetry.reporting import Figure
from rollout.vllm_patches import count_preemptions

if TYPE_CHECKING:
    from vllm import LLM


class VllmUsage:
    """Reads the scheduler of an engine in this process. Nothing is counted in a step, so none takes longer."""

    def __init__(self, llm: LLM) -> None:
        self._scheduler: Any = llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
        self._preemptions = count_preemptions(self._scheduler)

    def read(self) -> Iterator[Figure]:
        """Yield the figures. Any thread may ask: lengths are read, and numbers."""
        running, waiting = self._scheduler.get_request_counts()
        yield Figure("vllm_requests_running", running)
        yield Figure("vllm_requests_waiting", waiting)
        yield Figure("vllm_kv_cache_usage", self._scheduler.get_kv_cache_usage())
        yield Figure("vllm_preemptions", self._preemptions())
