"""Weights into a running vLLM model, and what was computed with the old ones out of its caches.

Every transport gives the full set. A partial one would be silently wrong: vLLM fuses several Hugging Face tensors into
one and leaves the missing part uninitialised. Only what stands before the language model may be left out, as a whole:
vLLM keeps a layer that gets nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from common.models.families import engine_name
from common.types import WeightManifest
from rollout.weights import Arrived, Tensors

if TYPE_CHECKING:
    from vllm import LLM

    from rollout.direct_load import Routes


class Loader:
    """Loads versions into a running in-process engine and resets what was computed with the old one.

    The first version goes vLLM's own way, which is written down. The second goes both ways, and if they leave the same
    model behind, all that follow go the short one. Only CPU engines have it: a GPU's are fed by NCCL.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._routes: Routes | None = None
        self._loads = 0

    def load(self, arrived: Arrived, *, keep_image_features: bool) -> str | None:
        """Load what `Inbox.receive` gave; why this engine keeps to vLLM's own way, the moment that is found out.

        `keep_image_features`: the vision tower did not change, so cached image features are still right.
        """
        from vllm.config import set_current_vllm_config

        self._loads += 1
        note = None
        with set_current_vllm_config(_worker(self._llm).vllm_config):
            if self._loads == 1:
                note = self._trace(arrived.tensors)
            elif self._routes is None:
                self._own_way(arrived.tensors)
            elif self._loads == 2:
                note = self._compare(self._routes, arrived.tensors)
            else:
                self._short_way(self._routes, arrived)
        reset_caches(self._llm, keep_image_features=keep_image_features)
        return note

    def _trace(self, tensors: Tensors) -> str | None:
        from vllm.platforms import current_platform

        from rollout.direct_load import Tracing, UnknownRouteError

        if not current_platform.is_cpu():
            self._own_way(tensors)
            return None
        tracing = self._own_way(tensors, lambda model: Tracing(model, tensors))
        try:
            self._routes = tracing.routes(self._model)
        except UnknownRouteError as error:
            return str(error)
        return None

    def _compare(self, routes: Routes, tensors: Tensors) -> str | None:
        lent = [(name, tensor.clone()) for name, tensor in tensors]
        self._short_way(routes, Arrived(lent, unchanged=frozenset()))
        for _, tensor in lent:
            tensor.zero_()  # a layer that has kept the sender's memory shows now
        short = routes.fingerprint()
        self._own_way(tensors)
        own = routes.fingerprint()
        differs = [name for name, found in own.items() if short.get(name) != found]
        if differs:
            self._routes = None
            return f"{', '.join(differs[:5])} came out otherwise"
        return None

    @property
    def _model(self) -> Any:
        return _worker(self._llm).model_runner.model

    def _short_way(self, routes: Routes, arrived: Arrived) -> None:
        from vllm.model_executor.layers.attention import is_deferred_attention_layer

        routes.load(dict(arrived.tensors), unchanged=arrived.unchanged)
        for layer in self._model.modules():
            if is_deferred_attention_layer(layer):  # after all others, as vLLM does it
                layer.process_weights_after_loading(_worker(self._llm).model_config.dtype)

    def _own_way(self, tensors: Tensors, watch: Callable[[Any], AbstractContextManager[Any]] = nullcontext) -> Any:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
        from vllm.platforms import current_platform

        worker, model = _worker(self._llm), self._model
        config = worker.model_config.hf_config
        initialize_layerwise_reload(model)
        with watch(model) as watched:
            model.load_weights((engine_name(name, config), tensor) for name, tensor in tensors)
            finalize_layerwise_reload(model, worker.model_config)
        for module in model.modules():
            if isinstance(module, ParallelLMHead):  # a tied head keeps its own packed copy otherwise
                module.quant_method.process_weights_after_loading(module)
            elif type(module).__name__ == "RoutedExperts" and current_platform.is_cpu():  # packed once only otherwise
                module.quant_method.moe_kernel.fused_experts.process_weights_after_loading(module)
        return watched


def reset_caches(llm: LLM, *, keep_image_features: bool) -> None:
    """Forget keys, values and image features of the old weights (fault 8 of the seed)."""
    llm.reset_prefix_cache()
    if not keep_image_features:
        llm.llm_engine.reset_encoder_cache()


def receive_nccl(llm: LLM, manifest: WeightManifest, *, keep_image_features: bool) -> None:
    """Take part in the learner's packed broadcast through vLLM's own NCCL weight-transfer engine (GPU only)."""
    entries = [entry for bucket in manifest.buckets for entry in bucket.entries]
    update_info = {
        "names": [engine_name(entry.name, _worker(llm).model_config.hf_config) for entry in entries],
        "dtype_names": [entry.dtype for entry in entries],
        "shapes": [list(entry.shape) for entry in entries],
    }
    llm.collective_rpc("start_weight_update")
    llm.collective_rpc("update_weights", args=(update_info,))
    llm.collective_rpc("finish_weight_update")
    reset_caches(llm, keep_image_features=keep_image_features)


def _worker(llm: LLM) -> Any:
    """The worker inside this process (engine, core and worker share it when multiprocessing is off)."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker  # type: ignore[attr-defined]
