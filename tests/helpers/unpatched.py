"""vLLM without the patches of `rollout.vllm_patches`, in an actor, for the tests that say when a patch can go."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from common.config.schema import Config
from common.types import GenerationRequest, WeightManifest
from rollout.spec import EngineSpec, engine_spec
from rollout.vllm_patches import PATCHES
from tests.helpers.engines import generate
from tests.helpers.policy import Policy

CHUNK = 256  # tokens of one step, which may then compute a part of a longer prompt
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}


class UnpatchedActor:
    """Builds engines as Rollcall does, one after the other, but for the patches and what chunked prefill is set to."""

    def __init__(self) -> None:
        import vllm

        from rollout import vllm_patches

        def do_nothing(*_: Any) -> None:
            return

        self._pack = vllm_patches.pack_heads_and_experts
        for patch in PATCHES:
            module, _, name = patch.where.rpartition(".")
            if module == vllm_patches.__name__:
                setattr(vllm_patches, name, do_nothing)

        build = vllm.LLM
        plain = {"enable_chunked_prefill": True, "max_num_batched_tokens": CHUNK, "block_size": 32}
        vllm.LLM = lambda **settings: build(**(settings | plain))  # type: ignore[assignment, misc]
        self._engine: Any = None

    def start(self, spec: EngineSpec) -> None:
        from rollout.engine import RolloutEngine
        from rollout.weight_loader import get_model

        if self._engine is not None:
            self._stop()
        self._engine = RolloutEngine(spec, "unpatched")
        self._model = get_model(self._engine._llm)  # noqa: SLF001

    def _stop(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine._llm.llm_engine.engine_core.shutdown()  # noqa: SLF001
        del self._engine, self._model
        cleanup_dist_env_and_memory()

    def load(self, manifest: WeightManifest) -> None:
        self._engine.load(manifest)

    def find_loaded(self, modules: Sequence[str]) -> set[str]:
        """Return which of `modules` this process has imported."""
        return set(modules) & sys.modules.keys()

    def find_needless(self) -> dict[str, bool]:
        """Return of what `quicken_start` leaves out whether vLLM does it."""
        from vllm.triton_utils import dispatcher

        return {
            "looks for arguments to log": "vllm.entrypoints.launchers.cli_args" in sys.modules,
            "warms up a renderer": self._engine._llm.renderer._mm_warmup_done,  # noqa: SLF001
            "looks in every module": "in list(sys.modules.values())" in inspect.getsource(dispatcher._rebind_kernels),  # noqa: SLF001
        }

    def find_packed(self) -> dict[str, bool]:
        """Return by layer whether its weight is packed."""
        import torch

        layers = {name: layer for name, layer in self._model.named_modules() if hasattr(layer, "cpu_linear")}
        return {name: layer.cpu_linear is not torch.nn.functional.linear for name, layer in layers.items()}

    def find_public_fields(self) -> list[str]:
        """Return the public names under which the model's processor says how inputs divide into pictures."""
        processor = self._engine._llm.llm_engine.renderer.get_mm_processor()  # noqa: SLF001
        assert callable(processor._get_mm_fields_config)  # noqa: SLF001
        return [name for name in dir(processor) if "fields" in name and not name.startswith("_")]

    def share_logits_processors(self) -> bool:
        """Say whether one class can change the logits in both of vLLM's model runners."""
        from vllm.v1.sample.logits_processor import LogitsProcessor as OnCpu
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as OnGpu

        return issubclass(OnCpu, OnGpu) or issubclass(OnGpu, OnCpu)

    def sample(self, request: GenerationRequest) -> set[int]:
        """Return the token ids that are sampled."""
        groups: Any = [group for finished in generate(self._engine, [request], 0) for group in finished]
        return {token for group in groups for one in group.completions for token in one.token_ids}

    def strip_pictures(self) -> list[set[str]]:
        """Return the inputs that a worker gets of a picture: of which nothing is computed yet, and of which all is."""
        import torch
        from vllm.multimodal.inputs import (
            MultiModalFeatureSpec,
            MultiModalFieldConfig,
            MultiModalKwargsItems,
            PlaceholderRange,
        )
        from vllm.v1.core.sched.output import strip_covered_mm_data  # type: ignore[attr-defined]

        values = {"pixel_values": torch.zeros(1, 4, 8), "image_grid_thw": torch.ones(1, 3)}
        fields = {name: MultiModalFieldConfig.batched("image", keep_on_cpu="grid" in name) for name in values}
        (item,) = MultiModalKwargsItems.from_hf_inputs(values, fields)["image"]  # type: ignore[arg-type]
        place = PlaceholderRange(offset=2, length=4)
        feature = MultiModalFeatureSpec(data=item, modality="image", identifier="one", mm_position=place)
        return [set(strip_covered_mm_data([feature], covered, uses_mrope=True)[0].data or ()) for covered in (0, 16)]

    def read_statistics(self) -> Any:
        """Return what the scheduler knows of the statistics of its requests, preemptions among them."""
        scheduler: Any = self._engine._llm.llm_engine.engine_core.engine_core.scheduler  # noqa: SLF001
        return scheduler.make_stats()

    def find_block_sizes(self) -> list[int]:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        return [size.base for size in CPUAttentionBackend.get_supported_kernel_block_sizes()]  # type: ignore[union-attr]

    def count_positions(self, request: GenerationRequest) -> int:
        """Return how often the positions of the prompt are computed while the request is answered."""
        calls = []
        compute = self._model.get_mrope_input_positions

        def count(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return compute(*args, **kwargs)

        self._model.get_mrope_input_positions = count
        list(generate(self._engine, [request], 0))
        del self._model.get_mrope_input_positions
        return len(calls)

    def find_stale(self, manifest: WeightManifest) -> set[str]:
        """Reload with vLLM alone, and return the kinds of layers that packing again would change."""
        from vllm.config import set_current_vllm_config

        from rollout.weight_loader import get_worker

        received = self._engine._receiver.receive(manifest, towers=True).tensors  # noqa: SLF001
        # The sender names a tied head a second time, as other checkpoints do not.
        tied = self._engine._llm.llm_engine.model_config.hf_text_config.tie_word_embeddings  # noqa: SLF001
        tensors = [(name, tensor) for name, tensor in received if not (tied and name.startswith("lm_head."))]
        with set_current_vllm_config(get_worker(self._engine._llm).vllm_config):  # noqa: SLF001
            self._engine._loader._load_with_vllm(tensors)  # noqa: SLF001
            before = self._measure()
            self._pack(self._model)
            after = self._measure()
        return {kind for kind, found in before.items() if not found.equal(after[kind])}

    def _measure(self) -> dict[str, Any]:
        """Return what a head gives for one input, and the weights that experts multiply with."""
        import torch
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        found = {}
        for layer in self._model.modules():
            if isinstance(layer, ParallelLMHead):
                inputs = torch.linspace(-1, 1, layer.embedding_dim).view(1, -1)
                found["head"] = layer.cpu_linear(inputs, layer.weight, None).clone()  # type: ignore[operator]
            elif type(layer).__name__ == "RoutedExperts":
                found["experts"] = layer.w13_weight.detach().clone()
        return found

    def compare_loads(self, manifest: WeightManifest) -> float:
        """Return how many times longer vLLM's reload takes than a direct load of the same tensors."""
        from vllm.config import set_current_vllm_config

        from rollout.direct_load import CopyRecorder
        from rollout.weight_loader import get_worker
        from rollout.weights import ReceivedWeights

        loader: Any = self._engine._loader  # noqa: SLF001
        tensors = self._engine._receiver.receive(manifest, towers=True).tensors  # noqa: SLF001
        seconds: dict[str, list[float]] = {"vllm": [], "direct": []}
        with set_current_vllm_config(get_worker(self._engine._llm).vllm_config):  # noqa: SLF001
            recorder = loader._load_with_vllm(tensors, lambda model: CopyRecorder(model, tensors))  # noqa: SLF001
            direct = recorder.make_loader(self._model)
            for _ in range(5):
                started = time.perf_counter()
                loader._load_with_vllm(tensors)  # noqa: SLF001
                half = time.perf_counter()
                loader._load_directly(direct, ReceivedWeights(tensors, frozenset()))  # noqa: SLF001
                seconds["vllm"].append(half - started)
                seconds["direct"].append(time.perf_counter() - half)
        return min(seconds["vllm"]) / min(seconds["direct"])

    def break_on(self, request: GenerationRequest) -> tuple[str, bool]:
        """Return what the request raises, "" for nothing, and whether it is still in vLLM's scheduler afterwards."""
        try:
            list(generate(self._engine, [request], 0))
        except Exception as error:  # noqa: BLE001  # whatever vLLM raises
            return repr(error), self._engine._llm.llm_engine.has_unfinished_requests()  # noqa: SLF001
        return "", False


class UnpatchedEngine:
    """One engine of the actor, and the learner's side of its model; version 0 of the weights is loaded."""

    def __init__(self, actor: Any, folder: Path) -> None:
        config = Config.model_validate(
            {
                "model": {"path": str(folder), "dtype": "float32"},
                "data": {"max_prompt_tokens": 480},
                "rollout": {"max_completion_tokens": 16, "max_sequences": 32, "gpus_per_engine": 0},
                "learner": {"gpus_per_rank": 0},
                "cluster": {"device": "cpu"},
            }
        )
        self._actor = actor
        self.policy = Policy(folder, max_prompt_tokens=480)
        self.ask("start", engine_spec(config, model_path=str(folder), banned=()))
        self.policy.push(self, 0)

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method of the actor and return its answer."""
        return ray.get(getattr(self._actor, method).remote(*args), timeout=300)

    def publish(self, manifest: WeightManifest) -> None:
        self.ask("load", manifest)

    def publish_other_weights(self) -> WeightManifest:
        self.policy.shake(1)
        return self.policy.sender().publish(1)
