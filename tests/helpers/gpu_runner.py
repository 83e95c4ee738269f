"""Engines as on a GPU, on this CPU: vLLM's Model Runner V2, whose Triton kernels are interpreted.

A GPU's engine has other Python than a CPU's. Model Runner V2 keeps requests and samples in its own way. Prompts are
computed in parts, a step is scheduled while another one runs, and weights pass through vLLM's own loader. All of that
runs here. What cannot run are compiled kernels, CUDA graphs and streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from common.types import FailedGroup, GenerationRequest, Group, WeightManifest
from rollout.spec import EngineSpec
from rollout.weights import Tensors
from tests.helpers.engines import generate
from tests.helpers.turns import Turns

CHUNK = 48  # tokens of one step, fewer than a prompt with a picture has
ENVIRONMENT = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}


class GpuRunnerTurns(Turns):
    """The actor. Its process needs `ENVIRONMENT`, and has not imported vLLM before."""

    def __init__(self) -> None:
        interpret_triton()
        import vllm
        from vllm.platforms.cpu import CpuPlatform

        from rollout.weight_loader import WeightLoader

        self._more: dict[str, Any] = {}
        build, check = vllm.LLM, CpuPlatform.check_and_update_config

        def build_as_on_a_gpu(**settings: Any) -> vllm.LLM:
            return build(**(settings | {"enable_chunked_prefill": True, "max_num_batched_tokens": CHUNK} | self._more))

        def check_and_schedule_ahead(vllm_config: Any) -> None:
            check(vllm_config)
            vllm_config.scheduler_config.async_scheduling = True

        def load_with_vllm(loader: WeightLoader, tensors: Tensors) -> None:
            loader._load_with_vllm(tensors)  # noqa: SLF001

        vllm.LLM = build_as_on_a_gpu  # type: ignore[assignment, misc]
        CpuPlatform.check_and_update_config = staticmethod(check_and_schedule_ahead)  # type: ignore[method-assign]
        WeightLoader._load_and_record = load_with_vllm  # type: ignore[assignment, method-assign]  # noqa: SLF001

    def start_with_processor(self, spec: EngineSpec) -> str:
        """Return what vLLM says to a logits processor of its other model runner; "" if it takes it."""
        from vllm.v1.sample.logits_processor import MinPLogitsProcessor

        self._more = {"logits_processors": [MinPLogitsProcessor]}
        try:
            self.start(spec)
        except ValueError as error:
            return str(error)
        finally:
            self._more = {}
        return ""

    def start_with_few_blocks(self, spec: EngineSpec, blocks: int) -> None:
        """Build an engine whose cache of keys and values has only so many blocks."""
        self._more = {"num_gpu_blocks_override": blocks}
        try:
            self.start(spec)
        finally:
            self._more = {}

    def generate_and_count(
        self, requests: Sequence[GenerationRequest], version: int
    ) -> tuple[list[Group | FailedGroup], int]:
        """Return the groups, and how often an answer was put off: its keys and values were thrown away meanwhile."""
        scheduler, put_off = self._core().scheduler, []
        preempt = scheduler._preempt_request  # noqa: SLF001
        scheduler._preempt_request = lambda request, *rest, **more: put_off.append(preempt(request, *rest, **more))  # noqa: SLF001
        groups = self.generate(requests, version)
        del scheduler._preempt_request  # noqa: SLF001
        return groups, len(put_off)

    def count_positions(self, request: GenerationRequest, version: int) -> tuple[int, int]:
        """Return how often the positions of the prompt were asked for while it was answered, and how often computed."""
        from rollout.weight_loader import get_model

        model, given = get_model(self._running()._llm), []  # noqa: SLF001
        positions = model.get_mrope_input_positions

        def watch(*args: Any) -> Any:
            given.append(positions(*args))
            return given[-1]

        model.get_mrope_input_positions = watch
        self.generate([request], version)
        model.get_mrope_input_positions = positions
        return len(given), len({id(one) for one in given})

    def describe(self) -> dict[str, Any]:
        """Return what of the engine is as on a GPU."""
        core = self._core()
        return {
            "model runner": type(core.model_executor.driver_worker.worker.model_runner).__base__.__module__,
            "what keeps a GPU from it": core.vllm_config._get_v2_model_runner_unsupported_features(),  # noqa: SLF001
            "parts of prompts": core.vllm_config.scheduler_config.enable_chunked_prefill,
            "schedules ahead": core.vllm_config.scheduler_config.async_scheduling,
        }

    def stop_early(self, requests: Sequence[GenerationRequest], version: int) -> int:
        """Generate until the first groups are out, and return how many steps are still under way."""
        stream: Any = generate(self._running(), requests, version)
        next(stream)
        stream.close()
        return len(self._core().batch_queue)

    def load_amid(self, request: GenerationRequest, manifest: WeightManifest) -> str:
        """Load weights while a request is being answered, and return what is raised."""
        from common.errors import BrokenEngineError

        engine = self._running()
        assert engine._add("amid", request, None) is None  # noqa: SLF001
        engine._llm.llm_engine.step()  # noqa: SLF001
        try:
            self.load(manifest)
        except BrokenEngineError as error:
            return str(error)
        finally:
            engine._llm.llm_engine.abort_request(["amid"])  # noqa: SLF001
        return ""

    def _core(self) -> Any:
        return self._running()._llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]  # noqa: SLF001


def interpret_triton() -> None:
    """Let vLLM find a Triton that works on this CPU. Call it before vLLM is imported."""
    import triton.backends
    from triton.runtime import interpreter

    driver = SimpleNamespace(is_active=lambda: True)
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)

    # The kernel of top-k and top-p counts by `tl.range` and expects tensors, which it gets where it is compiled.
    language: Any = interpreter
    patch, to_tensor = language._patch_lang_core, language._implicit_cvt  # noqa: SLF001

    def patch_range(module: Any, scope: Any) -> None:
        patch(module, scope)
        count = module.range
        scope.set_attr(module, "range", lambda *bounds, **_: map(to_tensor, count(*bounds)))

    language._patch_lang_core = patch_range  # noqa: SLF001
