"""Load weights into a running vLLM model, and empty its caches of what was computed with the old ones.

Every transport gives all weights. With only some of them vLLM would be silently wrong: it fuses several Hugging Face
tensors into one parameter, as q, k and v into `qkv_proj`, and leaves a missing part uninitialised. Only vision tower
and projector may be left out, both as a whole: vLLM keeps a layer for which no tensor comes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from common.errors import EngineError
from common.models.families import engine_name
from common.types import WeightManifest
from rollout import vllm_patches
from rollout.weights import ReceivedWeights, Tensors

if TYPE_CHECKING:
    from vllm import LLM

    from rollout.direct_load import DirectLoader


class WeightLoader:
    """Loads versions of the weights into an engine in this process, and resets what was computed with the old ones.

    The first version is loaded by vLLM, and its copies are recorded. The second is loaded by vLLM and directly, and
    the two results are compared. If they are equal, all later versions are loaded directly: see `rollout.direct_load`.
    Only engines on a CPU load directly.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._direct: DirectLoader | None = None
        self._loads = 0

    def load(self, received: ReceivedWeights) -> str | None:
        """Load what `WeightReceiver.receive` gave. What the engine's caches hold is of the old weights still.

        Returns:
            Why this engine will never load directly, when this load has just found that out; else None.
        """
        from vllm.config import set_current_vllm_config

        self._loads += 1
        note = None
        with set_current_vllm_config(get_worker(self._llm).vllm_config):
            if self._loads == 1:
                note = self._load_and_record(received.tensors)
            elif self._direct is None:
                self._load_with_vllm(received.tensors)
            elif self._loads == 2:
                note = self._load_both_ways(self._direct, received.tensors)
            else:
                self._load_directly(self._direct, received)
        return note

    def _load_and_record(self, tensors: Tensors) -> str | None:
        """Load with vLLM and record the copies, on a CPU. Return why that was not possible, or None."""
        from vllm.platforms import current_platform

        from rollout.direct_load import CopyRecorder, UnsupportedLoadError

        if not current_platform.is_cpu():
            self._load_with_vllm(tensors)
            return None
        recorder = self._load_with_vllm(tensors, lambda model: CopyRecorder(model, tensors))
        try:
            self._direct = recorder.make_loader(get_model(self._llm))
        except UnsupportedLoadError as error:
            return str(error)
        return None

    def _load_both_ways(self, direct: DirectLoader, tensors: Tensors) -> str | None:
        """Load directly, then with vLLM, and keep to vLLM's loader when the results differ."""
        copies = [(name, tensor.clone()) for name, tensor in tensors]
        self._load_directly(direct, ReceivedWeights(copies, unchanged=frozenset()))
        for _, tensor in copies:
            tensor.zero_()  # a layer that has kept the sender's memory shows now
        after_direct = direct.fingerprint()

        self._load_with_vllm(tensors)
        after_vllm = direct.fingerprint()

        differing = [name for name, found in after_vllm.items() if after_direct.get(name) != found]
        if differing:
            self._direct = None
            return f"{', '.join(differing[:5])} came out otherwise"
        return None

    def _load_directly(self, direct: DirectLoader, received: ReceivedWeights) -> None:
        from vllm.model_executor.layers.attention import is_deferred_attention_layer

        direct.load(dict(received.tensors), unchanged=received.unchanged)
        for layer in get_model(self._llm).modules():
            if is_deferred_attention_layer(layer):  # after all others, as vLLM does it
                layer.process_weights_after_loading(get_worker(self._llm).model_config.dtype)

    def _load_with_vllm(
        self, tensors: Tensors, watch: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    ) -> Any:
        """Load with vLLM's layerwise reload inside the context that `watch` makes of the model, and return that."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        model, model_config = get_model(self._llm), get_worker(self._llm).model_config
        parameters = {name for name, _ in model.named_parameters()}  # a tied one once, as long as they lie in memory
        initialize_layerwise_reload(model)
        with watch(model) as watcher:
            filled = model.load_weights((engine_name(name, model_config.hf_config), tensor) for name, tensor in tensors)
            if self._loads == 1:
                _check_complete(parameters.difference(filled))
            finalize_layerwise_reload(model, model_config)
        vllm_patches.pack_heads_and_experts(model)
        return watcher


def _check_complete(left: Collection[str]) -> None:
    """Raise EngineError when some parameters, `left`, got no tensor: vLLM's reload only logs that, and keeps them."""
    if left:
        raise EngineError(
            "an engine got no weights for some of its parameters",
            got=f"nothing for {len(left)} of them: {', '.join(sorted(left)[:5])}",
            remedy="the model's names in transformers and vLLM differ: report its family, which is not supported yet",
        )


def reset_caches(llm: LLM, *, keep_image_features: bool, running: bool) -> None:
    """Forget keys, values and image features of the old weights (fault 8).

    Args:
        keep_image_features: the vision tower did not change, so cached image features are still right.
        running: requests are half done. vLLM computes their keys and values anew before it goes on with them.

    Raises EngineError when vLLM keeps the keys and values, as it does while a request holds some.
    """
    if not llm.reset_prefix_cache(reset_running_requests=running):
        raise EngineError(
            "an engine cannot forget the keys and values of its old weights",
            got="vLLM's reset_prefix_cache() says no: a request still holds blocks of the cache",
            remedy="this is a bug in Rollcall: weights are loaded between two generations, when none holds any",
        )
    if not keep_image_features:
        llm.llm_engine.reset_encoder_cache()


def receive_by_nccl(llm: LLM, manifest: WeightManifest) -> None:
    """Take part in the learner's packed broadcast through vLLM's own NCCL weight-transfer engine (GPU only)."""
    entries = [entry for bucket in manifest.buckets for entry in bucket.entries]
    update_info = {
        "names": [engine_name(entry.name, get_worker(llm).model_config.hf_config) for entry in entries],
        "dtype_names": [entry.dtype for entry in entries],
        "shapes": [list(entry.shape) for entry in entries],
    }
    llm.collective_rpc("start_weight_update")
    llm.collective_rpc("update_weights", args=(update_info,))
    llm.collective_rpc("finish_weight_update")


def get_worker(llm: LLM) -> Any:
    """Return the worker inside this process: engine, core and worker share it when multiprocessing is off."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker  # type: ignore[attr-defined]


def get_model(llm: LLM) -> Any:
    """Return the torch module that this engine samples with."""
    return get_worker(llm).model_runner.model
